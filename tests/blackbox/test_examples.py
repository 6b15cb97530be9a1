"""Every example of the REST documentation, verbatim: the request goes in, the documented keys and types come out."""

import pytest

from waiting import eventually, moment
from wire import runners_pb2

PUBLISH = {
    "func": "myapp.jobs.send_email",
    "payload": {"recipients": ["user@example.com"], "subject": "Welcome", "template": "welcome_email"},
    "channel": "emails",
    "delay": 60,
    "max_retries": 3,
}
STATUS_KEYS = {
    "id", "status", "channel", "func", "created", "started_at", "finished_at", "attempt", "max_retries", "last_error",
    "metadata", "runner_id", "cancel_requested", "duration_ms", "is_terminal", "is_retriable", "recent_events",
    "queue_position",
}  # fmt: skip


@pytest.fixture
def job_id(rest):
    """A job as the documentation publishes it; it waits for its time."""
    job_id = rest.ok("POST", "/api/jobs/publish", PUBLISH)["job_id"]
    yield job_id
    rest.post(f"/api/jobs/job/{job_id}", {"cancel_request": True})


@pytest.fixture
def emails_runner(service, crew, rest):
    return crew.runner(service, "emails", runner_id="worker-01-1234", capacity=4)


def test_publish_answers_with_the_job(rest):
    body = rest.ok("POST", "/api/jobs/publish", PUBLISH)
    assert isinstance(body["job_id"], str) and len(body["job_id"]) == 32
    assert set(body["data"]) >= {"id", "func", "channel", "status", "run_at", "expires_at", "created"}
    assert body["data"]["id"] == body["job_id"]
    assert body["data"]["status"] == "pending"
    created, run_at, expires_at = (moment(body["data"][key]) for key in ("created", "run_at", "expires_at"))
    assert abs(run_at - created - 60) < 1
    assert abs(expires_at - run_at - 900) < 1
    rest.act(body["job_id"], cancel_request=True)


def test_cancel_answers_as_documented(rest, job_id):
    body = rest.ok("POST", f"/api/jobs/job/{job_id}", {"cancel_request": True})
    assert body["status"] is True
    assert body["message"] == f"Job {job_id} cancellation requested"
    assert body["job_id"] == job_id
    assert isinstance(body["forced"], bool)


def test_immediate_retry_answers_as_documented(rest, job_id):
    rest.act(job_id, cancel_request=True)
    body = rest.ok("POST", f"/api/jobs/job/{job_id}", {"retry_request": True})
    assert body["message"] == "Job retry scheduled"
    assert body["original_job_id"] == job_id
    assert isinstance(body["new_job_id"], str) and body["new_job_id"] != job_id
    assert body["delayed"] is False
    rest.act(body["new_job_id"], cancel_request=True)


def test_delayed_retry_answers_as_documented(rest, job_id):
    rest.act(job_id, cancel_request=True)
    body = rest.ok("POST", f"/api/jobs/job/{job_id}", {"retry_request": {"retry": True, "delay": 60}})
    assert body["message"] == "Job retry scheduled"
    assert body["original_job_id"] == job_id
    assert body["delayed"] is True
    retried = rest.job(body["new_job_id"])
    assert abs(moment(retried["run_at"]) - moment(retried["created"]) - 60) < 2
    rest.act(body["new_job_id"], cancel_request=True)


def test_status_of_a_running_job_has_the_documented_shape(rest, emails_runner):
    job_id = rest.ok("POST", "/api/jobs/publish", {**PUBLISH, "delay": 0})["job_id"]
    assignment = emails_runner.next_assignment(job_id=job_id)
    emails_runner.progress(assignment, metadata='{"emails_sent": 42}')

    def status():
        data = rest.ok("POST", f"/api/jobs/job/{job_id}", {"get_status": True})["data"]
        return data if data["metadata"] == {"emails_sent": 42} and data["status"] == "running" else None

    data = eventually("the metadata is visible while the job runs", status)
    assert set(data) >= STATUS_KEYS
    assert data["id"] == job_id
    assert data["channel"] == "emails"
    assert data["func"] == "myapp.jobs.send_email"
    assert moment(data["started_at"]) >= moment(data["created"])
    assert data["finished_at"] is None
    assert (data["attempt"], data["max_retries"], data["last_error"]) == (1, 3, "")
    assert data["runner_id"] == "worker-01-1234"
    assert data["cancel_requested"] is False
    assert isinstance(data["duration_ms"], int)
    assert data["is_terminal"] is False
    assert data["is_retriable"] is True
    assert data["queue_position"] is None
    for event in data["recent_events"]:
        assert set(event) >= {"event", "at", "runner_id", "details"}
        moment(event["at"])
        assert isinstance(event["details"], dict)
    names = [event["event"] for event in data["recent_events"]]
    assert names[0] == "created" and "running" in names
    assert data["recent_events"][0]["runner_id"] is None
    assert data["recent_events"][names.index("running")]["runner_id"] == "worker-01-1234"
    assert emails_runner.complete(assignment)


def test_publish_from_template_answers_as_documented(rest, job_id):
    overrides = {
        "payload": {"recipients": ["new@example.com"], "subject": "Updated subject"},
        "delay": 300,
        "channel": "high_priority",
    }
    body = rest.ok("POST", f"/api/jobs/job/{job_id}", {"publish_job": overrides})
    assert body["message"] == "Job published successfully"
    assert body["template_job_id"] == job_id
    copy = rest.job(body["job_id"])
    assert copy["payload"] == overrides["payload"]
    assert copy["channel"] == "high_priority"
    assert copy["func"] == PUBLISH["func"]
    assert abs(moment(copy["run_at"]) - moment(copy["created"]) - 300) < 2
    rest.act(body["job_id"], cancel_request=True)


def test_list_answers_newest_first(rest, job_id):
    body = rest.ok("GET", "/api/jobs/list", channel="emails", status="pending", limit=50)
    assert body["count"] == len(body["data"]) <= 50
    assert job_id in [job["id"] for job in body["data"]]
    assert {(job["channel"], job["status"]) for job in body["data"]} == {("emails", "pending")}
    created = [moment(job["created"]) for job in body["data"]]
    assert created == sorted(created, reverse=True)


def test_events_answer_oldest_first(rest, job_id):
    body = rest.ok("GET", f"/api/jobs/job/{job_id}/events")
    assert body["job_id"] == job_id
    assert body["count"] == len(body["data"]) >= 1
    for event in body["data"]:
        assert set(event) >= {"id", "event", "at", "runner_id", "attempt", "details"}
    assert body["data"][0]["event"] == "created"
    assert [moment(event["at"]) for event in body["data"]] == sorted(moment(event["at"]) for event in body["data"])


def test_channel_health_has_the_documented_shape(rest, job_id, emails_runner):
    body = rest.ok("GET", "/api/jobs/health/emails")
    data = body["data"]
    assert set(data) >= {"channel", "status", "messages", "runners", "stuck_jobs", "alerts", "metrics"}
    assert data["channel"] == "emails"
    assert data["status"] in ("healthy", "warning", "critical")
    assert set(data["messages"]) >= {"total", "unclaimed", "pending", "scheduled", "stuck"}
    assert all(isinstance(count, int) for count in data["messages"].values())
    assert data["messages"]["scheduled"] >= 1
    assert data["runners"]["active"] >= 1 and data["runners"]["total"] >= 1
    assert isinstance(data["stuck_jobs"], list) and isinstance(data["alerts"], list)
    assert set(data["metrics"]) >= {"jobs_per_minute", "success_rate", "avg_duration_ms"}
    assert all(isinstance(figure, (int, float)) for figure in data["metrics"].values())


def test_runners_of_a_channel_are_listed(rest, emails_runner):
    body = rest.ok("GET", "/api/jobs/runners", channel="emails")
    runner = next(runner for runner in body["data"] if runner["runner_id"] == "worker-01-1234" and runner["alive"])
    assert set(runner) >= {
        "id", "runner_id", "hostname", "channels", "jobs_processed", "jobs_failed", "started", "last_heartbeat",
        "alive", "paused", "capacity", "running", "client",
    }  # fmt: skip
    assert runner["channels"] == ["emails"]
    assert runner["capacity"] == 4
    assert runner["paused"] is False
    assert runner["hostname"] == "test-host"
    moment(runner["started"])
    moment(runner["last_heartbeat"])


def test_ping_reaches_the_runner(rest, emails_runner):
    body = rest.ok("POST", "/api/jobs/runners/ping", {"runner_id": "worker-01-1234", "timeout": 2.0})
    assert body["responsive"] is True


def test_shutdown_reaches_the_runner(rest, emails_runner):
    rest.ok("POST", "/api/jobs/runners/shutdown", {"runner_id": "worker-01-1234", "graceful": True})
    assert emails_runner.command(runners_pb2.COMMAND_KIND_SHUTDOWN).graceful is True
    rest.ok("POST", "/api/jobs/runners/shutdown", {"runner_id": "worker-01-1234", "graceful": True})


def test_broadcast_command_gathers_replies(rest, emails_runner):
    body = rest.ok("POST", "/api/jobs/runners/broadcast", {"command": "status", "data": {}, "timeout": 2.0})
    replies = {reply["runner_id"]: reply for reply in body["responses"]}
    assert set(replies["worker-01-1234"]) >= {
        "runner_id", "channels", "jobs_processed", "jobs_failed", "started", "timestamp", "said_by",
    }  # fmt: skip
    assert replies["worker-01-1234"]["channels"] == ["emails"]
