"""Cancel, retry, publish from a template, delete."""

import json
from time import time

import pytest

from waiting import eventually, moment
from wire import runners_pb2


def act(rest, job_id, body, code=400):
    return rest.refused(code, "POST", f"/api/jobs/job/{job_id}", body)


@pytest.fixture
def running(rest, service, crew, channel):
    """A runner and what it runs."""
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel)
    assignment = runner.next_assignment(job_id=job_id)
    eventually("it runs", lambda: rest.status(job_id) == "running")
    return runner, assignment, job_id


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"cancel_request": False}, "cancel_request must be true"),
        ({"cancel_request": "yes"}, "cancel_request must be true"),
        ({"retry_request": False}, "retry_request must be true or {retry: true, delay: N}"),
        ({"retry_request": {"delay": 5}}, "retry_request must be true or {retry: true, delay: N}"),
        ({"retry_request": {"retry": True, "delay": "x"}}, "retry_request must be true or {retry: true, delay: N}"),
        ({"publish_job": True}, "publish_job must be an object with job parameters"),
        ({"publish_job": [1]}, "publish_job must be an object with job parameters"),
    ],
)
def test_a_malformed_action_is_refused_in_so_many_words(rest, channel, body, sentence):
    assert act(rest, rest.publish(channel), body) == sentence


@pytest.mark.parametrize(
    "body", [{}, {"cancel_request": True, "get_status": True}, {"status": "completed"}, {"get_status": False}]
)
def test_a_request_is_exactly_one_action(rest, channel, body):
    job_id = rest.publish(channel)
    act(rest, job_id, body)
    assert rest.status(job_id) == "pending"


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_put_and_patch_do_what_post_does(rest, channel, method):
    job_id = rest.publish(channel)
    body = rest.ok(method, f"/api/jobs/job/{job_id}", {"cancel_request": True})
    assert body["message"] == f"Job {job_id} cancellation requested"
    assert rest.status(job_id) == "canceled"


def test_an_owner_without_manage_jobs_may_not_act(rest, channel):
    alice = rest.who("alice")
    job_id = alice.publish(channel)
    for body in ({"cancel_request": True}, {"retry_request": True}):
        assert act(alice, job_id, body, 403) == "Permission denied: manage_jobs required"
    error = alice.refused(403, "DELETE", f"/api/jobs/job/{job_id}")
    assert error == "Permission denied: manage_jobs required"


def test_a_pending_job_is_canceled_at_once(rest, channel):
    job_id = rest.publish(channel)
    assert rest.act(job_id, cancel_request=True)["forced"] is False
    job = rest.job(job_id)
    assert job["status"] == "canceled"
    assert job["finished_at"] is not None
    assert rest.events(job_id)[-1]["event"] == "canceled"
    assert act(rest, job_id, {"cancel_request": True}) == "Cannot cancel job in canceled state"


def test_a_canceled_job_reaches_no_runner(rest, service, crew, channel):
    canceled = rest.publish(channel)
    rest.act(canceled, cancel_request=True)
    wanted = rest.publish(channel)
    runner = crew.runner(service, channel, capacity=2)
    assert runner.complete(runner.next_assignment(job_id=wanted))
    assert runner.idle()


def test_a_running_job_is_canceled_by_its_runner(rest, running):
    runner, assignment, job_id = running
    answer = rest.act(job_id, cancel_request=True)
    assert answer["message"] == f"Job {job_id} cancellation requested"
    assert answer["forced"] is False
    assert runner.interrupt(assignment, timeout=5).reason == runners_pb2.INTERRUPT_REASON_REQUESTED
    job = rest.job(job_id)
    assert (job["status"], job["cancel_requested"]) == ("running", True)
    assert runner.canceled(assignment)
    assert rest.status(job_id) == "canceled"


def test_a_second_cancel_answers_like_the_first(rest, running):
    runner, assignment, job_id = running
    assert rest.act(job_id, cancel_request=True) == rest.act(job_id, cancel_request=True)
    assert runner.canceled(assignment)


def test_a_job_that_ignores_its_cancel_ends_as_it_ends(rest, running):
    runner, assignment, job_id = running
    rest.act(job_id, cancel_request=True)
    assert runner.complete(assignment, result='"done anyway"')
    assert rest.status(job_id) == "completed"
    assert act(rest, job_id, {"cancel_request": True}) == "Cannot cancel job in completed state"


def test_a_job_that_fails_after_its_cancel_is_not_retried(rest, running):
    runner, assignment, job_id = running
    rest.act(job_id, cancel_request=True)
    assert runner.fail(assignment)
    job = rest.job(job_id)
    assert job["status"] in ("failed", "canceled")
    assert job["is_terminal"] is True


def test_a_job_whose_runner_is_gone_is_canceled_without_it(rest, service, crew, running, channel):
    runner, _, job_id = running
    second = crew.runner(service, channel)
    runner.drop()
    rest.act(job_id, cancel_request=True)
    eventually("the job is canceled", lambda: rest.status(job_id) == "canceled", seconds=8)
    assert second.idle()


def test_a_retry_is_a_new_job_and_leaves_the_old_one(rest, service, crew, channel):
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel, payload={"a": 1}, max_retries=0)
    assert runner.fail(runner.next_assignment(), error="first time")
    before = rest.job(job_id)
    assert (before["status"], before["last_error"]) == ("failed", "first time")
    new_id = rest.act(job_id, retry_request=True)["new_job_id"]
    again = runner.next_assignment(job_id=new_id)
    assert json.loads(again.job.payload_json) == {"a": 1}
    assert again.job.attempt == 1
    assert runner.complete(again)
    after = rest.job(job_id)
    assert {**after, "recent_events": 0, "modified": 0} == {**before, "recent_events": 0, "modified": 0}
    retries = [event for event in rest.events(job_id) if event["event"] == "retry"]
    assert len(retries) == 1 and new_id in json.dumps(retries[0]["details"])


def test_a_retry_has_a_fresh_expiry(rest, channel):
    job_id = rest.publish(channel, expires_in=1)
    eventually("it expired", lambda: rest.status(job_id) == "expired", seconds=8)
    retried = rest.job(rest.act(job_id, retry_request=True)["new_job_id"])
    assert retried["status"] == "pending" or moment(retried["expires_at"]) > time()
    assert moment(retried["expires_at"]) > moment(rest.job(job_id)["expires_at"])


@pytest.mark.parametrize("state", ["pending", "running", "completed"])
def test_only_what_failed_is_retried(rest, service, crew, channel, state):
    job_id = rest.publish(channel)
    if state != "pending":
        runner = crew.runner(service, channel)
        assignment = runner.next_assignment(job_id=job_id)
        eventually("it runs", lambda: rest.status(job_id) == "running")
        if state == "completed":
            assert runner.complete(assignment)
    assert act(rest, job_id, {"retry_request": True}) == f"Cannot retry job in {state} state"


def test_a_template_gives_what_is_not_overridden(rest, channel):
    template = rest.publish(channel, payload={"a": 1}, delay=300, max_retries=7, max_exec_seconds=9)
    plain = rest.job(rest.act(template, publish_job={})["job_id"])
    assert (plain["payload"], plain["max_retries"], plain["max_exec_seconds"]) == ({"a": 1}, 7, 9)
    assert plain["run_at"] is None or moment(plain["run_at"]) <= time() + 1
    assert abs(moment(plain["expires_at"]) - moment(plain["created"]) - 900) < 2
    other = rest.act(template, publish_job={"max_retries": 0, "func": "tests.other", "delay": 60, "recipients": ["x"]})
    changed = rest.job(other["job_id"])
    assert (changed["max_retries"], changed["func"], changed["payload"]) == (0, "tests.other", {"a": 1})
    assert rest.job(template)["max_retries"] == 7


def test_a_bad_override_is_refused_by_its_name(rest, channel):
    assert "delay" in act(rest, rest.publish(channel), {"publish_job": {"delay": -1}})


def test_a_template_with_a_key_may_be_used_again(rest, channel):
    template = rest.publish(channel, idempotency_key=f"k-{channel}")
    assert rest.act(template, publish_job={})["job_id"] != template


def test_delete_removes_the_job_and_its_events(rest, channel):
    job_id = rest.publish(channel)
    body = rest.ok("DELETE", f"/api/jobs/job/{job_id}")
    assert body == {"status": True, "message": f"Job {job_id} deleted", "job_id": job_id}
    rest.refused(404, "GET", f"/api/jobs/job/{job_id}")
    rest.refused(404, "GET", f"/api/jobs/job/{job_id}/events")
    rest.refused(404, "DELETE", f"/api/jobs/job/{job_id}")


def test_a_running_job_is_not_deleted(rest, running):
    runner, assignment, job_id = running
    rest.refused(400, "DELETE", f"/api/jobs/job/{job_id}")
    assert runner.complete(assignment)
    rest.ok("DELETE", f"/api/jobs/job/{job_id}")


def test_a_post_without_data_may_be_empty(rest, channel):
    rest.refused(400, "POST", f"/api/jobs/job/{rest.publish(channel)}")
