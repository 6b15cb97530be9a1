"""How often a job is tried, and when."""

import time

import pytest

from waiting import eventually, moment


@pytest.fixture
def rest(service):
    """Only looks on here, so one gateway is enough."""
    return service.rest()


def test_at_most_one_plus_max_retries_executions(service, crew, channel):
    client = service.grpc()
    runner = crew.runner(service, channel)
    job = client.publish(channel=channel, max_retries=2, backoff_base=0.1, backoff_max_seconds=1)
    for attempt in (1, 2, 3):
        assignment = runner.next_assignment(job_id=job.id)
        assert assignment.lease.attempt == attempt
        assert runner.fail(assignment, error=f"attempt {attempt}")
    assert client.status(job.id) == "failed"
    assert client.job(job.id).last_error == "attempt 3"
    assert runner.idle()


@pytest.mark.parametrize(("base", "ceiling", "wanted"), [(None, None, 2.0), (5.0, 3600, 5.0), (50.0, 20, 20.0)])
def test_a_retry_waits_for_its_backoff(service, crew, channel, rest, base, ceiling, wanted):
    client = service.grpc()
    runner = crew.runner(service, channel)
    fields = {"backoff_base": base, "backoff_max_seconds": ceiling} if base else {}
    job_id = client.publish(channel=channel, **fields).id
    before = time.time()
    assert runner.fail(runner.next_assignment(job_id=job_id))
    after = time.time()
    job = rest.job(job_id)
    assert (job["status"], job["attempt"]) == ("pending", 1)
    assert before + wanted * 0.8 - 0.01 <= moment(job["run_at"]) <= after + wanted * 1.2 + 0.01


def test_the_second_retry_waits_for_the_square(service, crew, channel, rest):
    runner = crew.runner(service, channel)
    job_id = service.grpc().publish(channel=channel, backoff_base=3.0).id
    assert runner.fail(runner.next_assignment(job_id=job_id), retry_after=0.1)
    before = time.time()
    assert runner.fail(runner.next_assignment(job_id=job_id))
    assert before + 9 * 0.8 - 0.01 <= moment(rest.job(job_id)["run_at"]) <= time.time() + 9 * 1.2 + 0.01


def test_a_runner_may_say_when_to_retry(service, crew, channel, rest):
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel)
    before = time.time()
    assert runner.fail(runner.next_assignment(job_id=job_id), retry_after=0.5)
    second = runner.next_assignment(job_id=job_id)
    assert time.time() - before >= 0.49
    assert second.lease.attempt == 2
    assert runner.complete(second)


def test_a_permanent_failure_is_not_retried(service, crew, channel, rest):
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel, max_retries=5)
    assert runner.fail(runner.next_assignment(job_id=job_id), error="bad input", permanent=True)
    job = rest.job(job_id)
    assert (job["status"], job["attempt"], job["last_error"]) == ("failed", 1, "bad input")
    assert job["is_terminal"] is True and job["is_retriable"] is True


def test_a_retry_past_the_publisher_s_expiry_fails_the_job(service, crew, channel, rest):
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel, expires_in=30)
    assert runner.fail(runner.next_assignment(job_id=job_id), error="the reason", retry_after=60)
    job = rest.job(job_id)
    assert (job["status"], job["last_error"]) == ("failed", "the reason")


def test_the_default_expiry_starts_anew_with_each_retry(service, crew, channel, rest):
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel)
    assert runner.fail(runner.next_assignment(job_id=job_id), retry_after=2000)
    job = rest.job(job_id)
    assert job["status"] == "pending"
    assert abs(moment(job["expires_at"]) - moment(job["run_at"]) - 900) < 2


def test_a_stack_trace_is_shown_in_detail_only(service, crew, channel, rest):
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel, max_retries=0)
    assert runner.fail(runner.next_assignment(job_id=job_id), stack_trace="Traceback: line 1")
    assert rest.job(job_id, graph="detail")["stack_trace"] == "Traceback: line 1"
    assert "stack_trace" not in rest.job(job_id)
    detailed = rest.ok("GET", "/api/jobs/job", channel=channel, graph="detail")["data"][0]
    assert detailed["stack_trace"] == "Traceback: line 1"


def test_a_job_between_attempts_can_be_canceled(service, crew, channel, rest):
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel)
    assert runner.fail(runner.next_assignment(job_id=job_id), retry_after=60)
    rest.act(job_id, cancel_request=True)
    assert rest.status(job_id) == "canceled"


def test_history_tells_each_attempt(service, crew, channel, rest):
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel)
    assert runner.fail(runner.next_assignment(job_id=job_id), retry_after=0.1)
    assert runner.complete(runner.next_assignment(job_id=job_id))
    eventually("it completed", lambda: rest.status(job_id) == "completed")
    events = rest.events(job_id)
    assert [event["attempt"] for event in events if event["event"] == "running"] == [1, 2]
    assert events[-1]["event"] == "completed"
    assert events[-1]["runner_id"] == runner.runner_id
