"""Runners that are busy, stuck, crashed, cut off, told things, and sent away."""

import os
import pathlib
import signal
import socket
import sys
import threading
import time

import grpc
import pytest
from service import QUICK, Process, environment, eventually

import errand
from errand.v1 import runners_pb2


def publish(client, channel, name, payload=None, **options):
    return client.publish(f"functions.{name}", payload or {}, channel=channel, **options).id


def status(client, job_id):
    return client.get(job_id).status


def command(service, kind, runner_id, timeout=10):
    """What one runner answers to a command of the service."""
    with grpc.insecure_channel(service.address) as channel:
        call = channel.unary_unary(
            "/errand.v1.Runners/BroadcastCommand",
            request_serializer=runners_pb2.BroadcastCommandRequest.SerializeToString,
            response_deserializer=runners_pb2.BroadcastCommandResponse.FromString,
        )
        request = runners_pb2.BroadcastCommandRequest(kind=kind, runner_ids=[runner_id])
        request.timeout.FromSeconds(timeout)
        (reply,) = call(request, metadata=(("authorization", f"Bearer {service.operator}"),)).replies
        return reply


def shut_down(service, runner_id, *, graceful):
    with grpc.insecure_channel(service.address) as channel:
        channel.unary_unary(
            "/errand.v1.Runners/ShutdownRunner",
            request_serializer=runners_pb2.ShutdownRunnerRequest.SerializeToString,
            response_deserializer=runners_pb2.ShutdownRunnerResponse.FromString,
        )(
            runners_pb2.ShutdownRunnerRequest(runner_id=runner_id, graceful=graceful),
            metadata=(("authorization", f"Bearer {service.operator}"),),
        )


def began(folder):
    return sorted(folder.glob("began-*"))


def test_a_function_that_keeps_the_interpreter_costs_no_lease(client, service, channel, runner, tmp_path):
    """Twice the lease's length, and the runner still answers meanwhile."""
    job_id = publish(client, channel, "keep_the_interpreter", {"seconds": 7, "folder": str(tmp_path)}, max_retries=0)
    eventually("it runs", lambda: list(tmp_path.glob(f"{job_id}-1")))
    assert '"pong":true' in command(service, runners_pb2.COMMAND_KIND_PING, runner.runner_id).data_json
    job = client.wait(job_id, timeout=60)
    assert (job.status, job.result, job.attempt) == (errand.JobStatus.COMPLETED, "released", 1)
    assert "lost" not in " ".join(event.kind for event in client.events(job_id))


def test_a_crash_fails_what_ran_and_nothing_else(client, channel, runner):
    job = client.wait(publish(client, channel, "crash", max_retries=0), timeout=30)
    assert job.status is errand.JobStatus.FAILED
    assert job.last_error == "the process that ran the function was killed by SIGKILL"
    assert client.result(publish(client, channel, "echo", {"still": "here"}), timeout=30) == {"still": "here"}


def test_a_function_over_its_time_is_stopped_in_the_end(client, crew, service, channel, tmp_path):
    runner = crew.runner(service, channel, "--capacity", "2")
    job_id = publish(client, channel, "spin", {"folder": str(tmp_path)}, max_exec_seconds=1, max_retries=0)
    eventually("it runs", lambda: list(tmp_path.glob(f"{job_id}-1")))
    (stuck,) = runner.executors()
    lasting = publish(client, channel, "until_told", {"folder": str(tmp_path)})
    eventually("another runs beside it", lambda: began(tmp_path))
    assert client.wait(job_id, timeout=30).status is errand.JobStatus.FAILED

    def takes_jobs():
        return client.result(publish(client, channel, "about"), timeout=30)["pid"]

    eventually("another executor has taken over", lambda: takes_jobs() != stuck)
    fresh = takes_jobs()
    assert stuck in runner.executors(), "the other job is still wanted"
    (tmp_path / "go").touch()
    assert client.result(lasting, timeout=30) == 1
    eventually("the stuck executor is gone", lambda: runner.executors() == [fresh])


def test_a_process_over_its_time_is_killed(client, crew, service, channel):
    runner = crew.runner(service, channel)
    slow = client.publish("busy", {"seconds": 600}, channel=channel, max_exec_seconds=1, max_retries=0).id
    assert client.wait(slow, timeout=30).status is errand.JobStatus.FAILED
    eventually("its process is gone", lambda: len(runner.executors()) == 1)
    assert client.result(client.publish("in-a-process", channel=channel).id, timeout=30)


def test_a_coroutine_over_its_time_is_canceled(client, channel, runner, tmp_path):
    job_id = publish(client, channel, "wait_for_ever", {"folder": str(tmp_path)}, max_exec_seconds=1, max_retries=0)
    assert client.wait(job_id, timeout=30).status is errand.JobStatus.FAILED
    eventually("it ended", (tmp_path / "ended").exists)


def test_a_first_signal_drains(client, channel, runner, tmp_path):
    running = publish(client, channel, "until_told", {"folder": str(tmp_path)})
    eventually("it runs", lambda: began(tmp_path))
    runner.signal(signal.SIGTERM)
    eventually("it leaves", lambda: "leaving (drain)" in runner.tail())
    waiting = publish(client, channel, "echo")
    (tmp_path / "go").touch()
    assert client.result(running, timeout=30) == 1
    assert runner.wait() == 0
    assert status(client, waiting) is errand.JobStatus.PENDING


def test_a_second_signal_releases(client, crew, service, channel, runner, tmp_path):
    job_id = publish(client, channel, "until_told", {"folder": str(tmp_path)}, max_retries=0)
    eventually("it runs", lambda: began(tmp_path))
    runner.signal(signal.SIGTERM)
    eventually("it leaves", lambda: "leaving (drain)" in runner.tail())
    runner.signal(signal.SIGTERM)
    assert runner.wait() == 0
    job = client.get(job_id)
    assert (job.status, job.attempt) == (errand.JobStatus.PENDING, 0)
    assert "released" in [event.kind for event in client.events(job_id)]
    (tmp_path / "go").touch()
    crew.runner(service, channel)
    assert client.result(job_id, timeout=30) == 1


@pytest.mark.parametrize("graceful", [True, False])
def test_the_service_may_send_it_away(client, service, channel, runner, tmp_path, graceful):
    job_id = publish(client, channel, "until_told", {"folder": str(tmp_path)}, max_retries=0)
    eventually("it runs", lambda: began(tmp_path))
    shut_down(service, runner.runner_id, graceful=graceful)
    if graceful:
        eventually("it leaves", lambda: "leaving (drain)" in runner.tail())
        (tmp_path / "go").touch()
    assert runner.wait() == 0
    expected = errand.JobStatus.COMPLETED if graceful else errand.JobStatus.PENDING
    assert status(client, job_id) is expected


def test_an_idle_runner_leaves_at_once(client, channel, runner):
    client.result(publish(client, channel, "echo"), timeout=30)
    runner.signal(signal.SIGINT)
    assert runner.wait(10) == 0


def test_a_runner_that_finds_no_service_leaves_too(crew, service, channel):
    runner = crew.runner(service, channel, server="http://127.0.0.1:9")
    eventually("it tries", lambda: "not connected, trying again" in runner.tail())
    runner.signal(signal.SIGTERM)
    assert runner.wait(10) == 0


def test_a_runner_leaves_whenever_it_is_told(crew, service, channel):
    """Before its stream is open, while it opens, and just after."""
    for pause in (0.0, 0.02, 0.05, 0.1, 0.2):
        runner = crew.runner(service, channel)
        # It handles signals before it starts executors.
        eventually("it starts an executor", runner.executors, every=0.002)
        time.sleep(pause)
        runner.signal(signal.SIGTERM)
        assert runner.wait(10) == 0


def test_commands_are_answered(client, service, channel, runner):
    client.result(publish(client, channel, "echo"), timeout=30)
    said = command(service, runners_pb2.COMMAND_KIND_STATUS, runner.runner_id)
    assert (said.error, f'"runner_id":"{runner.runner_id}"' in said.data_json) == ("", True)
    assert '"capacity":10' in said.data_json
    said = command(service, runners_pb2.COMMAND_KIND_SYSINFO, runner.runner_id)
    assert f'"pid":{runner.child.pid}' in said.data_json


def test_a_paused_runner_takes_nothing_until_it_is_resumed(client, service, channel, runner):
    client.result(publish(client, channel, "echo"), timeout=30)
    assert command(service, runners_pb2.COMMAND_KIND_PAUSE, runner.runner_id).error == ""
    job_id = publish(client, channel, "echo")
    end = time.monotonic() + 1
    while time.monotonic() < end:
        assert status(client, job_id) is errand.JobStatus.PENDING
    assert command(service, runners_pb2.COMMAND_KIND_RESUME, runner.runner_id).error == ""
    assert client.result(job_id, timeout=30) == {}


CHANGING = """
import pathlib
VERSION = {version}
def version(job):
    return VERSION
def slow(job):
    import time
    pathlib.Path(job.payload["folder"], "began").touch()
    while not pathlib.Path(job.payload["folder"], "go").exists():
        time.sleep(0.01)
    return VERSION
"""


def test_a_reload_loads_the_modules_afresh(client, crew, service, channel, tmp_path):
    module = tmp_path / "changing.py"
    module.write_text(CHANGING.format(version=1))
    runner = crew.runner(service, channel, modules=("changing",), PYTHONDONTWRITEBYTECODE="1")
    assert client.result(client.publish("changing.version", channel=channel).id, timeout=30) == 1
    old = client.publish("changing.slow", {"folder": str(tmp_path)}, channel=channel).id
    eventually("it runs", (tmp_path / "began").exists)
    module.write_text(CHANGING.format(version=2))
    assert command(service, runners_pb2.COMMAND_KIND_RELOAD, runner.runner_id).error == ""
    assert client.result(client.publish("changing.version", channel=channel).id, timeout=30) == 2
    (tmp_path / "go").touch()
    assert client.result(old, timeout=30) == 1
    module.write_text("this is no Python")
    assert "SyntaxError" in command(service, runners_pb2.COMMAND_KIND_RELOAD, runner.runner_id).error
    assert client.result(client.publish("changing.version", channel=channel).id, timeout=30) == 2


def test_a_result_outlives_a_service_that_is_killed(client, crew, channel, tmp_path):
    service = crew.service(*QUICK)
    crew.runner(service, channel)
    with errand.Client(service.url, service.operator) as client:
        job_id = publish(client, channel, "until_told", {"folder": str(tmp_path)}, max_retries=0)
        eventually("it runs", lambda: began(tmp_path))
        service.process.kill()
        (tmp_path / "go").touch()
        service.start()
        assert client.result(job_id, timeout=60) == 1
        assert len(began(tmp_path)) == 1


class Relay:
    """A TCP relay that can be cut and mended: a server by another address."""

    def __init__(self, target):
        self.target = target
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.pairs = []
        self.accepted = 0
        self.open = True
        self.changing = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            # A connection is counted only once `cut` would find it.
            with self.changing:
                if not self.open:
                    near.close()
                    continue
                host, port = self.target.rsplit(":", 1)
                far = socket.create_connection((host, int(port)))
                self.pairs += [near, far]
                self.accepted += 1
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            end.close()

    def cut(self):
        with self.changing:
            for end in self.pairs:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
            self.pairs.clear()

    def close(self):
        with self.changing:
            self.open = False
        self.cut()
        self.listener.close()


@pytest.fixture
def relay(service):
    relay = Relay(service.address)
    yield relay
    relay.close()


def test_a_cut_connection_is_resumed(client, crew, service, channel, relay, tmp_path):
    crew.runner(service, channel, server=relay.url)
    job_id = publish(client, channel, "until_told", {"folder": str(tmp_path)}, max_retries=0)
    eventually("it runs", lambda: began(tmp_path))
    for _ in range(3):
        before = relay.accepted
        relay.cut()
        eventually("it connects again", lambda before=before: relay.accepted > before)
    (tmp_path / "go").touch()
    job = client.wait(job_id, timeout=30)
    assert (job.status, job.attempt, len(began(tmp_path))) == (errand.JobStatus.COMPLETED, 1, 1)


def test_another_server_is_used_when_one_goes_away(client, crew, service, channel, relay, tmp_path):
    runner = crew.runner(service, channel, server=f"http://127.0.0.1:9,{relay.url},{service.url}")
    client.result(publish(client, channel, "echo"), timeout=30)
    relay.close()
    assert client.result(publish(client, channel, "echo", {"n": 2}), timeout=30) == {"n": 2}
    assert runner.alive()


def test_a_lost_lease_stops_the_execution(client, crew, service, channel, relay, tmp_path):
    """It is away for longer than the resume window; another runner has the job by then."""
    crew.runner(service, channel, "--capacity", "1", server=relay.url)
    job_id = publish(client, channel, "until_told", {"folder": str(tmp_path)}, max_retries=1, backoff_base=0.01)
    eventually("it runs", lambda: began(tmp_path))
    relay.open = False
    relay.cut()
    other = crew.runner(service, channel)
    eventually("another has it", lambda: len(began(tmp_path)) == 2)
    relay.open = True
    eventually("it stopped, and takes jobs again", lambda: relay.pairs)
    (tmp_path / "go").touch()
    job = client.wait(job_id, timeout=30)
    assert (job.status, job.result, job.runner_id) == (errand.JobStatus.COMPLETED, 2, other.runner_id)


def test_executors_end_with_their_supervisor(client, channel, runner):
    pid = client.result(publish(client, channel, "about"), timeout=30)["pid"]
    client.result(client.publish("in-a-process", channel=channel).id, timeout=30)
    pids = runner.executors()
    assert pid in pids
    runner.kill()
    eventually("they are gone", lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids))


def test_it_never_holds_more_than_its_capacity(client, crew, service, channel, tmp_path):
    crew.runner(service, channel, "--capacity", "3")
    payload = {"folder": str(tmp_path)}
    receipts = client.publish_batch(errand.JobSpec("functions.until_told", payload, channel=channel) for _ in range(9))
    eventually("three run", lambda: len(began(tmp_path)) == 3)
    running = errand.Filters(channel=channel, status="running")
    end = time.monotonic() + 1
    while time.monotonic() < end:
        assert client.page(running, count=True).total == 3
    (tmp_path / "go").touch()
    assert [client.result(receipt.id, timeout=30) for receipt in receipts] == [1] * 9


def test_a_refused_token_ends_it(crew, service, channel):
    runner = crew.runner(service, channel, token="nonsense")
    assert runner.wait() == 69
    assert "errand-runner: Invalid token" in runner.tail()
    runner = crew.runner(service, channel, token=service.token("reader", "view_jobs"))
    assert runner.wait() == 69
    assert "run_jobs" in runner.tail()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--capacity", "0"], "must be at least 1"),
        (["--server", "ftp://x:1"], "must be http://HOST:PORT"),
        (["--runner-id", "a b"], "must be 1 to 64 of"),
        (["--tls-ca", "/nowhere", "--server", "https://127.0.0.1:1"], "/nowhere"),
    ],
)
def test_a_wrong_switch_is_named(crew, service, channel, arguments, said):
    runner = crew.runner(service, channel, *arguments)
    assert runner.wait() == 64
    assert said in runner.tail()


def test_a_module_that_cannot_be_imported_is_told(crew, service, channel):
    runner = crew.runner(service, channel, modules=("no_such_module",))
    assert runner.wait() == 69
    assert "No module named 'no_such_module'" in runner.tail()


def test_an_id_that_another_bears_is_refused_in_the_end(client, crew, service, channel, runner):
    client.result(publish(client, channel, "echo"), timeout=30)
    second = crew.runner(service, channel, "--runner-id", runner.runner_id)
    assert second.wait(60) == 69
    assert "is taken by another live runner" in second.tail()
    assert runner.alive()


PROGRAM = """
import os, sys
import errand

def double(job):
    return job.payload["n"] * 2

@errand.job
def triple(job):
    return job.payload["n"] * 3

if __name__ == "__main__":
    errand.Runner(["__main__"], channels=[sys.argv[1]], capacity=2).run()
"""


def test_a_program_can_be_its_own_runner(client, crew, service, channel, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    variables = environment(ERRAND_SERVER=service.url, ERRAND_TOKEN=service.run_jobs)
    program = Process([sys.executable, "program.py", channel], tmp_path, "program", env=variables)
    program.runner_id = "program"
    crew.processes.append(program)
    assert client.result(client.publish("__main__.double", {"n": 21}, channel=channel).id, timeout=30) == 42
    assert client.result(client.publish("__main__.triple", {"n": 14}, channel=channel).id, timeout=30) == 42
    assert program.end() == 0


def test_a_library_runner_is_stopped_from_another_thread(client, service, channel, monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    runner = errand.Runner(["functions"], server=service.url, token=service.run_jobs, channels=[channel])
    thread = threading.Thread(target=runner.run)
    thread.start()
    assert client.result(publish(client, channel, "echo"), timeout=30) == {}
    runner.stop()
    thread.join(30)
    assert not thread.is_alive()
