"""`errand work`: any program as a runner."""

import json
import os
import signal
import subprocess

import pytest

from service import ERRAND, clean_environment, errand
from waiting import eventually
from wire import jobs_pb2


@pytest.fixture
def rest(service):
    """Only looks on here, so one gateway is enough."""
    return service.rest()


class Work:
    """`errand work` on one channel with one command."""

    def __init__(self, service, folder, channel, *command, capacity=None):
        env = clean_environment(
            ERRAND_SERVER=f"http://{service.grpc_address}", ERRAND_TOKEN=service.token("crew", "run_jobs")
        )
        switches = ["--channel", channel] + (["--capacity", str(capacity)] if capacity else [])
        self.log = folder / "work.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [ERRAND, "work", *switches, "--", *command], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env
            )

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise AssertionError(f"errand work ignores SIGTERM\n{self.log.read_text()[-2000:]}")


@pytest.fixture
def work(service, tmp_path, channel):
    started = []

    def start(*command, **options):
        started.append(Work(service, tmp_path, options.pop("on", channel), *command, **options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.end()


def ended(rest, job_id, status):
    eventually(f"the job is {status}", lambda: rest.status(job_id) == status)
    return rest.job(job_id)


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_publish_wait_and_work_go_hand_in_hand(service, work, rest):
    work("cat", on="default")
    env = clean_environment(
        ERRAND_SERVER=f"http://{service.grpc_address}", ERRAND_TOKEN=service.token("script", "run_jobs")
    )
    done = errand("publish", "tests.wait", '{"a": 1}', "--wait", env=env)
    assert done.returncode == 0, done.stderr
    job = rest.ok("GET", "/api/jobs/job", func="tests.wait", size=1)["data"][0]
    assert (job["status"], job["result"]) == ("completed", {"a": 1})


def test_the_payload_comes_in_and_the_result_goes_out(work, rest, channel):
    work("cat")
    job_id = rest.publish(channel, payload={"n": 12345678901234567890, "u": "é"})
    assert ended(rest, job_id, "completed")["result"] == {"n": 12345678901234567890, "u": "é"}


def test_output_that_is_not_json_is_no_result(work, rest, channel):
    work("echo", "just words")
    assert ended(rest, rest.publish(channel), "completed")["result"] is None


def test_the_command_knows_its_job(work, rest, channel):
    script = 'printf \'{"id":"%s","func":"%s","attempt":%s}\' "$ERRAND_JOB_ID" "$ERRAND_FUNC" "$ERRAND_ATTEMPT"'
    work("sh", "-c", script)
    job_id = rest.publish(channel, func="tests.env")
    assert ended(rest, job_id, "completed")["result"] == {"id": job_id, "func": "tests.env", "attempt": 1}


def test_exit_75_fails_it_to_be_retried(work, rest, channel):
    work("sh", "-c", "exit 75")
    job_id = rest.publish(channel)
    eventually("it failed once and waits", lambda: (j := rest.job(job_id))["attempt"] == 1 and j["status"] == "pending")
    assert rest.job(job_id)["last_error"]


def test_exit_64_fails_it_for_good(work, rest, channel):
    work("sh", "-c", "exit 64")
    job = ended(rest, rest.publish(channel, max_retries=5), "failed")
    assert job["attempt"] == 1


@pytest.mark.parametrize("command", ["exit 3", "kill -9 $$"])
def test_any_other_end_fails_it(work, rest, channel, command):
    work("sh", "-c", command)
    assert ended(rest, rest.publish(channel, max_retries=0), "failed")["last_error"]


def test_a_command_that_cannot_be_started_fails_its_jobs(work, rest, channel):
    started = work("/nonexistent/command")
    job_id = rest.publish(channel, max_retries=0)
    eventually(
        "it is said", lambda: started.process.poll() not in (None, 0) or rest.status(job_id) == "failed"
    )


def test_standard_error_becomes_the_log(service, work, rest, channel):
    work("sh", "-c", "echo first >&2; echo second >&2")
    job_id = rest.publish(channel)
    ended(rest, job_id, "completed")
    client = service.grpc()

    def messages():
        return [line.message for line in client.jobs.ListJobLogs(jobs_pb2.ListJobLogsRequest(job_id=job_id)).logs]

    eventually("both lines are kept", lambda: messages() == ["first", "second"])


@pytest.mark.parametrize("obedient", [True, False])
def test_a_cancel_ends_the_command(work, rest, channel, tmp_path, obedient):
    pid_file = tmp_path / "pid"
    trap = "" if obedient else 'trap "" TERM; '
    work("sh", "-c", f"{trap}echo $$ > {pid_file}; while :; do sleep 0.1; done")
    job_id = rest.publish(channel)
    pid = int(eventually("the command runs", lambda: pid_file.exists() and pid_file.read_text().strip()))
    rest.act(job_id, cancel_request=True)
    eventually("the command is gone", lambda: gone(pid), seconds=45)
    ended(rest, job_id, "canceled")


def test_the_time_limit_ends_the_command(work, rest, channel, tmp_path):
    pid_file = tmp_path / "pid"
    work("sh", "-c", f"echo $$ > {pid_file}; while :; do sleep 0.1; done")
    job_id = rest.publish(channel, max_exec_seconds=1, max_retries=0)
    pid = int(eventually("the command runs", lambda: pid_file.exists() and pid_file.read_text().strip()))
    ended(rest, job_id, "failed")
    eventually("the command is gone", lambda: gone(pid), seconds=45)


def test_capacity_commands_run_at_once(work, rest, channel, tmp_path):
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    script = f"touch {meeting}/$ERRAND_JOB_ID; while [ $(ls {meeting} | wc -l) -lt 3 ]; do sleep 0.05; done"
    work("sh", "-c", script, capacity=3)
    for job_id in [rest.publish(channel) for _ in range(3)]:
        ended(rest, job_id, "completed")


def test_sigterm_finishes_what_runs_and_exits_0(work, rest, channel, tmp_path):
    started_file, finish_file = tmp_path / "started", tmp_path / "finish"
    one = work("sh", "-c", f"touch {started_file}; while [ ! -e {finish_file} ]; do sleep 0.05; done; echo 7")
    job_id = rest.publish(channel)
    eventually("the command runs", started_file.exists)
    one.process.send_signal(signal.SIGTERM)
    finish_file.touch()
    assert one.process.wait(20) == 0
    job = rest.job(job_id)
    assert (job["status"], job["result"]) in (("completed", 7), ("pending", None)), json.dumps(job)
