"""What was acknowledged is kept, whatever happens to the process."""

import socket
import threading

import pytest
import requests

from service import QUICK
from waiting import eventually


class Publishers:
    """Threads that publish until the service goes away, and remember what was acknowledged."""

    def __init__(self, service, channel, threads=4):
        self.acknowledged = []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._publish, args=(service, channel)) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    def _publish(self, service, channel):
        rest = service.rest()
        session = requests.Session()
        headers = {"Authorization": f"Bearer {rest.token}"}
        body = {"func": "f", "payload": {}, "channel": channel}
        while not self.stopping.is_set():
            try:
                reply = session.post(f"{rest.base}/api/jobs/publish", json=body, headers=headers, timeout=10)
                if reply.status_code == 200:
                    self.acknowledged.append(reply.json()["job_id"])
                elif reply.status_code == 503:
                    return
            except requests.RequestException:
                return

    def join(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(30)


def work_off(runner, wanted, rest):
    """Completes whatever comes until every wanted job is completed."""
    stopping = threading.Event()

    def work():
        while not stopping.is_set() and not runner.ended.is_set():
            if runner.idle():
                stopping.wait(0.005)
            else:
                assignment = runner.next_assignment(timeout=1)
                runner.complete(assignment)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        left = set(wanted)

        def done():
            left.difference_update([job_id for job_id in list(left)[:50] if rest.status(job_id) == "completed"])
            return not left

        eventually(f"all {len(wanted)} acknowledged jobs completed", done, seconds=60)
    finally:
        stopping.set()
        thread.join(30)


def test_every_acknowledged_job_survives_a_kill(crew, channel):
    service = crew.service(*QUICK)
    runner = crew.runner(service, channel, capacity=8)
    publishers = Publishers(service, channel)
    for _ in range(5):
        runner.next_assignment()
    eventually("the load is on", lambda: len(publishers.acknowledged) >= 200, seconds=60)
    service.kill()
    publishers.join()
    assert runner.ended.wait(10)
    service.start()
    rest = service.rest()
    work_off(crew.runner(service, channel, capacity=8), publishers.acknowledged, rest)


def test_an_acknowledged_result_survives_a_kill(crew, channel):
    service = crew.service(*QUICK)
    runner = crew.runner(service, channel)
    job_id = service.rest().publish(channel)
    assert runner.complete(runner.next_assignment(job_id=job_id), result="[1]")
    service.kill()
    rest = service.start().rest()
    assert (rest.status(job_id), rest.job(job_id)["result"]) == ("completed", [1])


def test_a_runner_resumes_after_the_service_was_killed(crew, channel):
    service = crew.service()
    runner = crew.runner(service, channel)
    job_id = service.rest().publish(channel)
    assignment = runner.next_assignment(job_id=job_id)
    eventually("it runs", lambda: service.rest().status(job_id) == "running")
    service.kill()
    runner.ended.wait(10)
    rest = service.start().rest()
    again = crew.runner(
        service,
        channel,
        runner_id=runner.runner_id,
        session_id=runner.welcome.session_id,
        leases=[assignment.lease],
    )
    assert list(again.welcome.lost) == []
    assert again.complete(assignment, result="7")
    assert (rest.status(job_id), rest.job(job_id)["attempt"]) == ("completed", 1)


def test_what_ran_when_the_service_died_runs_again_without_its_runner(crew, channel):
    service = crew.service(*QUICK)
    runner = crew.runner(service, channel)
    job_id = service.rest().publish(channel)
    runner.next_assignment(job_id=job_id)
    eventually("it runs", lambda: service.rest().status(job_id) == "running")
    service.kill()
    runner.ended.wait(10)
    service.start()
    other = crew.runner(service, channel)
    assert other.complete(other.next_assignment(job_id=job_id))


def test_delayed_jobs_and_tokens_survive_a_restart(crew, channel):
    service = crew.service(*QUICK)
    token = service.token("operator", "manage_jobs")
    job_id = service.rest().publish(channel, delay=3)
    assert service.stop() == 0
    service.start()
    assert service.rest().bearing(token).status(job_id) == "pending"
    runner = crew.runner(service, channel)
    assert runner.complete(runner.next_assignment(job_id=job_id))


@pytest.mark.parametrize("busy", [False, True])
def test_sigterm_drains(crew, channel, busy):
    service = crew.service(*QUICK)
    runner = crew.runner(service, channel)
    if busy:
        service.rest().publish(channel)
        runner.next_assignment()
    service.process.terminate()
    assert runner.go_away(timeout=15)
    runner.close()
    assert service.process.wait(30) == 0


def test_jobs_published_up_to_a_drain_are_kept(crew, channel):
    service = crew.service(*QUICK)
    publishers = Publishers(service, channel)
    eventually("the load is on", lambda: len(publishers.acknowledged) >= 100, seconds=60)
    assert service.stop() == 0
    publishers.join()
    client = service.start().grpc()
    for job_id in publishers.acknowledged:
        assert client.status(job_id) == "pending"


def test_after_a_drain_nothing_listens(crew):
    service = crew.service(*QUICK)
    addresses = (service.http, service.grpc_address)
    assert service.stop() == 0
    for address in addresses:
        host, port = address.rsplit(":", 1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=5)
