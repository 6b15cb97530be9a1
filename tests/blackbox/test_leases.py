"""Who may report on an execution, for how long, and what happens to the job otherwise."""

import time

import pytest

from waiting import eventually, holds, moment
from wire import runners_pb2


@pytest.fixture
def rest(service):
    """Only looks on here, so one gateway is enough."""
    return service.rest()


@pytest.fixture
def running(rest, service, crew, channel):
    """A runner and the first attempt of a job that it runs."""
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel)
    assignment = runner.next_assignment(job_id=job_id)
    eventually("it runs", lambda: rest.status(job_id) == "running")
    return runner, assignment, job_id


def back_again(crew, service, runner, channel, *assignments):
    """The same runner on another stream, as after a lost connection."""
    leases = [assignment.lease for assignment in assignments]
    return crew.runner(
        service, channel, runner_id=runner.runner_id, session_id=runner.welcome.session_id, leases=leases
    )


def test_a_lease_lasts_as_long_as_its_heartbeats(service, crew, channel, rest, running):
    runner, assignment, job_id = running
    other = crew.runner(service, channel)
    holds("the job stays with its runner", lambda: rest.job(job_id)["runner_id"] == runner.runner_id, seconds=4)
    assert other.idle()
    assert runner.complete(assignment)


def test_a_runner_back_within_the_window_keeps_its_lease(service, crew, channel, rest, running):
    runner, assignment, job_id = running
    other = crew.runner(service, channel)
    runner.drop()
    again = back_again(crew, service, runner, channel, assignment)
    assert again.welcome.session_id == runner.welcome.session_id
    assert list(again.welcome.lost) == []
    holds("the job stays with its runner", lambda: rest.status(job_id) == "running", seconds=2)
    assert again.complete(assignment)
    assert other.idle() and again.idle()
    assert rest.job(job_id)["attempt"] == 1


def test_a_result_may_be_sent_again_on_the_next_stream(service, crew, channel, rest, running):
    runner, assignment, job_id = running
    runner.drop()
    again = back_again(crew, service, runner, channel, assignment)
    assert again.complete(assignment, result="7")
    again.report(assignment, completed=runners_pb2.Completed(result_json="8"))
    again.receipt(assignment)
    assert (rest.status(job_id), rest.job(job_id)["result"]) == ("completed", 7)


def test_a_closed_stream_past_the_window_moves_the_job(crew, channel):
    service = crew.service()
    rest = service.rest()
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel)
    first = runner.next_assignment(job_id=job_id)
    eventually("it runs", lambda: rest.status(job_id) == "running")
    other = crew.runner(service, channel)
    runner.drop()
    second = other.next_assignment(timeout=8, job_id=job_id)
    assert second.lease.attempt == first.lease.attempt + 1
    assert other.complete(second)


def test_a_silent_runner_loses_its_job_and_its_late_result_is_refused(service, crew, channel, rest, running):
    runner, assignment, job_id = running
    runner.beating = False
    other = crew.runner(service, channel)
    second = other.next_assignment(timeout=15, job_id=job_id)
    assert runner.interrupt(assignment).reason == runners_pb2.INTERRUPT_REASON_LEASE_LOST
    assert runner.complete(assignment, result='"late"') is False
    assert rest.status(job_id) == "running"
    assert other.complete(second, result='"in time"')
    job = rest.job(job_id)
    assert (job["status"], job["result"], job["attempt"]) == ("completed", "in time", 2)


def test_a_runner_back_too_late_is_told_what_it_lost(service, crew, channel, rest, running):
    runner, assignment, job_id = running
    other = crew.runner(service, channel)
    runner.drop()
    second = other.next_assignment(job_id=job_id)
    again = back_again(crew, service, runner, channel, assignment)
    assert [(lease.job_id, lease.attempt) for lease in again.welcome.lost] == [(job_id, 1)]
    assert other.complete(second)


def test_an_assignment_that_nobody_accepts_goes_to_another(service, crew, channel, rest):
    deaf = crew.runner(service, channel, accepts=False)
    job_id = rest.publish(channel)
    deaf.next_assignment(job_id=job_id)
    other = crew.runner(service, channel)
    assert other.complete(other.next_assignment(timeout=15, job_id=job_id))


def test_a_lease_that_a_live_runner_stops_naming_lapses(service, crew, channel, rest, running):
    runner, _, job_id = running
    runner.held.clear()
    other = crew.runner(service, channel)
    assert other.complete(other.next_assignment(timeout=15, job_id=job_id))


def test_another_attempt_s_result_changes_nothing(rest, running):
    runner, assignment, job_id = running
    forged = runners_pb2.Assignment(lease={"job_id": job_id, "attempt": 9})
    assert runner.complete(forged) is False
    assert rest.status(job_id) == "running"
    assert runner.complete(assignment)


def test_the_time_limit_fails_the_attempt(service, crew, channel, rest):
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel, max_exec_seconds=1, max_retries=0)
    assignment = runner.next_assignment(job_id=job_id)
    assert assignment.job.max_exec_seconds == 1
    assert runner.interrupt(assignment).reason == runners_pb2.INTERRUPT_REASON_TIMED_OUT
    eventually("it failed", lambda: rest.status(job_id) == "failed")
    job = rest.job(job_id)
    assert job["attempt"] == 1 and job["last_error"]
    assert moment(job["finished_at"]) - moment(job["started_at"]) >= 0.99
    assert runner.complete(assignment) is False


def test_a_timed_out_attempt_is_retried_while_retries_are_left(service, crew, channel):
    client = service.grpc()
    runner = crew.runner(service, channel)
    job = client.publish(channel=channel, max_exec_seconds=1, max_retries=1, backoff_base=0.1, backoff_max_seconds=1)
    first = runner.next_assignment(job_id=job.id)
    runner.interrupt(first)
    runner.held.clear()
    second = runner.next_assignment(job_id=job.id)
    assert second.lease.attempt == 2
    assert runner.complete(second)


def test_a_released_job_costs_no_attempt(service, crew, channel, rest):
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel, max_retries=0)
    for _ in range(3):
        assert runner.release(runner.next_assignment(job_id=job_id))
    last = runner.next_assignment(job_id=job_id)
    assert runner.fail(last, error="the only execution")
    job = rest.job(job_id)
    assert (job["status"], job["last_error"]) == ("failed", "the only execution")
    assert [event["event"] for event in rest.events(job_id)].count("released") == 3


def test_a_goodbye_gives_back_what_was_held_soon(service, crew, channel, rest, running):
    runner, _, job_id = running
    other = crew.runner(service, channel)
    started = time.monotonic()
    runner.close()
    assert other.complete(other.next_assignment(timeout=15, job_id=job_id))
    assert time.monotonic() - started < 15


def test_progress_is_seen_and_outlives_a_failure(rest, running):
    runner, assignment, job_id = running
    runner.progress(assignment, metadata='{"step": 1}')
    eventually("progress shows", lambda: rest.job(job_id)["metadata"] == {"step": 1})
    runner.progress(assignment, metadata='{"step": 2}')
    eventually("progress shows", lambda: rest.job(job_id)["metadata"] == {"step": 2})
    assert runner.fail(assignment, permanent=True)
    job = rest.job(job_id)
    assert (job["status"], job["metadata"]) == ("failed", {"step": 2})
