"""Jobs that have ended are kept for a while, or up to a number, and then go with all that is theirs."""

import json
import time

import grpc
import pytest

from service import QUICK, clean_environment, errand
from waiting import eventually, holds, moment
from wire import code_of, jobs_pb2

KEPT_SECONDS = 4


def finish(runner, rest, channel, **fields):
    """A job that has completed, with a line in its log; answers it as it was seen last."""
    job_id = rest.publish(channel, **fields)
    assignment = runner.next_assignment()
    runner.progress(assignment, logs=["hello"])
    assert runner.complete(assignment)
    return eventually("it completed", lambda: (job := rest.job(job_id))["status"] == "completed" and job)


def told(service):
    """What `errand stats` says of retention."""
    env = clean_environment(
        ERRAND_SERVER=f"http://{service.grpc_address}", ERRAND_TOKEN=service.token("script", "view_jobs")
    )
    done = errand("stats", "--json", env=env)
    assert done.returncode == 0, done.stderr
    table = errand("stats", env=env)
    assert table.returncode == 0 and "finished jobs kept" in table.stdout, table.stdout
    return json.loads(done.stdout)["retention"]


def is_gone(rest, job_id):
    return rest.get(f"/api/jobs/job/{job_id}").code == 404


def test_a_job_goes_with_all_that_is_its_own(crew, channel):
    service = crew.service(*QUICK, "--retain-finished", f"{KEPT_SECONDS}s")
    rest, client = service.rest(), service.grpc()
    runner = crew.runner(service, channel)
    waits = rest.publish(channel + "-without-runner")
    first = finish(runner, rest, channel, idempotency_key="once")
    again = {"func": "tests.echo", "payload": {}, "channel": channel, "idempotency_key": "once"}
    assert rest.ok("POST", "/api/jobs/publish", again)["deduplicated"]
    assert client.jobs.ListJobLogs(jobs_pb2.ListJobLogsRequest(job_id=first["id"])).logs
    assert told(service)["keep_for_seconds"] == KEPT_SECONDS

    eventually("its time is over", lambda: is_gone(rest, first["id"]), seconds=30)
    assert time.time() - moment(first["finished_at"]) >= KEPT_SECONDS
    assert rest.refused(404, "GET", f"/api/jobs/job/{first['id']}/events") == "Job not found"
    logs = jobs_pb2.ListJobLogsRequest(job_id=first["id"])
    assert code_of(lambda: client.jobs.ListJobLogs(logs)) == grpc.StatusCode.NOT_FOUND
    assert rest.ok("GET", "/api/jobs/list", channel=channel)["data"] == []
    second = rest.ok("POST", "/api/jobs/publish", again)
    assert second["job_id"] != first["id"] and not second.get("deduplicated")
    assert runner.complete(runner.next_assignment())

    eventually("it is gone as well", lambda: is_gone(rest, second["job_id"]), seconds=30)
    stats = told(service)
    assert stats["removed"] == 2 and stats["finished"] == 0 and stats["oldest_created"] is None
    assert moment(stats["last_removed"]) >= moment(first["finished_at"]) + KEPT_SECONDS
    assert rest.status(waits) == "pending"
    assert rest.ok("GET", "/api/jobs/stats")["data"]["totals"]["completed"] == 0


def test_a_broadcast_job_goes_with_its_parts(crew, channel):
    service = crew.service(*QUICK, "--retain-finished", f"{KEPT_SECONDS}s")
    rest, client = service.rest(), service.grpc()
    runners = [crew.runner(service, channel) for _ in range(2)]
    job_id = rest.publish(channel, broadcast=True)
    for runner in runners:
        assert runner.complete(runner.next_assignment())
    parts = client.jobs.ListJobs(jobs_pb2.ListJobsRequest(parent_id=job_id)).jobs
    assert len(parts) == 2
    eventually("its time is over", lambda: is_gone(rest, job_id), seconds=30)
    for part in parts:
        assert code_of(lambda: client.job(part.id)) == grpc.StatusCode.NOT_FOUND


def test_beyond_their_number_the_oldest_go(crew, channel):
    service = crew.service(*QUICK, "--retain-finished", "off", "--retain-finished-max", "3")
    rest = service.rest()
    runner = crew.runner(service, channel)
    ended = [finish(runner, rest, channel)["id"] for _ in range(6)]

    def kept():
        return [job["id"] for job in rest.ok("GET", "/api/jobs/list", channel=channel)["data"]]

    eventually("three are left", lambda: len(kept()) == 3, seconds=40)
    assert kept() == ended[:2:-1]
    stats = told(service)
    assert (stats["keep_for_seconds"], stats["keep_max"]) == (None, 3)
    assert (stats["finished"], stats["removed"]) == (3, 3)
    assert moment(stats["oldest_created"]) == pytest.approx(moment(rest.job(ended[3])["created"]), abs=0.002)


def test_a_week_is_kept_where_nothing_is_said(crew, channel):
    service = crew.service(*QUICK)
    rest = service.rest()
    job = finish(crew.runner(service, channel), rest, channel)
    stats = told(service)
    assert (stats["keep_for_seconds"], stats["keep_max"]) == (7 * 24 * 3600, None)
    assert (stats["finished"], stats["removed"], stats["last_removed"]) == (1, 0, None)
    holds("it is kept", lambda: rest.status(job["id"]) == "completed", seconds=2)
    assert set(rest.ok("GET", "/api/jobs/stats")["data"]) == {"channels", "runners", "totals", "scheduler"}


@pytest.mark.topology("shared")
def test_one_node_removes_and_all_tell(crew, backends, channel):
    fleet = crew.fleet(*backends.switches(), *QUICK, "--retain-finished", f"{KEPT_SECONDS}s", nodes=2)
    rest = fleet.rest()
    job = finish(crew.runner(fleet, channel), rest, channel)
    eventually("its time is over", lambda: is_gone(rest, job["id"]), seconds=40)
    for node in fleet.nodes:
        eventually("this node tells so", lambda node=node: told(node)["removed"] == 1)
