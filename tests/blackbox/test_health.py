"""What the service says of its channels."""

import grpc
import pytest
from grpc_health.v1 import health_pb2 as liveness_pb2
from grpc_health.v1 import health_pb2_grpc as liveness_pb2_grpc

from waiting import eventually
from wire import code_of, jobs_pb2


def fill(service, channel, count):
    specs = [jobs_pb2.JobSpec(func="f", payload_json="{}", channel=channel)] * count
    return service.grpc().jobs.PublishJobs(jobs_pb2.PublishJobsRequest(specs=specs), timeout=60).receipts


def health(rest, channel):
    return rest.ok("GET", f"/api/jobs/health/{channel}")["data"]


def test_a_channel_never_seen_is_healthy_and_all_zeros(rest, channel):
    data = health(rest, channel)
    assert data["status"] == "healthy"
    assert set(data["messages"].values()) == {0}
    assert set(data["runners"].values()) == {0}
    assert data["stuck_jobs"] == [] and data["alerts"] == []


def test_work_without_a_runner_is_critical(rest, channel):
    rest.publish(channel)
    data = eventually("the alert is raised", lambda: (h := health(rest, channel))["alerts"] and h)
    assert data["status"] == "critical"
    assert "No active runners for channel with pending jobs" in data["alerts"]


def test_counts_tell_ready_running_and_scheduled_apart(rest, service, crew, channel):
    runner = crew.runner(service, channel)
    rest.publish(channel)
    assignment = runner.next_assignment()
    rest.publish(channel)
    rest.publish(channel, delay=60)
    wanted = {"total": 2, "unclaimed": 1, "pending": 1, "scheduled": 1, "stuck": 0}
    data = eventually("the counts agree", lambda: (h := health(rest, channel))["messages"] == wanted and h)
    assert data["status"] == "healthy"
    assert data["runners"] == {"active": 1, "total": 1}
    assert runner.complete(assignment)


@pytest.mark.parametrize(("count", "status"), [(100, "healthy"), (101, "warning"), (501, "critical")])
def test_a_backlog_is_judged_by_its_length(rest, service, crew, channel, count, status):
    runner = crew.runner(service, channel)
    runner.set_capacity(0)

    def paused():
        listed = rest.ok("GET", "/api/jobs/runners", channel=channel)["data"]
        return listed and (listed[0]["paused"] or listed[0]["capacity"] == 0)

    eventually("the runner takes nothing", paused)
    fill(service, channel, count)
    data = eventually("all are counted", lambda: (h := health(rest, channel))["messages"]["unclaimed"] == count and h)
    assert data["status"] == status
    assert (f"High unclaimed count: {count}" in data["alerts"]) == (count > 100)


def test_a_job_on_a_silent_runner_is_stuck(crew, channel):
    service = crew.service("--heartbeat-interval=200ms", "--accept-timeout=2s", "--lease-ttl=8s", "--resume-window=1s")
    rest = service.rest()
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel)
    assignment = runner.next_assignment(job_id=job_id)
    eventually("it runs", lambda: rest.status(job_id) == "running")
    runner.beating = False
    data = eventually("it is stuck", lambda: (h := health(rest, channel))["messages"]["stuck"] == 1 and h)
    assert data["status"] in ("warning", "critical")
    assert "Stuck jobs detected: 1" in data["alerts"]
    stuck = data["stuck_jobs"][0]
    assert (stuck["job_id"], stuck["runner_id"]) == (job_id, runner.runner_id)
    assert stuck["attempt"] == assignment.lease.attempt
    assert stuck["idle_ms"] > 0


def test_metrics_tell_how_the_last_minutes_went(rest, service, crew, channel):
    runner = crew.runner(service, channel)
    for ends_well in (True, True, True, False):
        rest.publish(channel, max_retries=0)
        assignment = runner.next_assignment()
        assert runner.complete(assignment) if ends_well else runner.fail(assignment)

    def counted():
        metrics = health(rest, channel)["metrics"]
        return metrics if metrics["success_rate"] == 75 else None

    metrics = eventually("all are counted", counted)
    assert metrics["jobs_per_minute"] > 0
    assert metrics["avg_duration_ms"] >= 0


def test_the_overview_has_every_channel_with_work(rest, channel):
    rest.publish(channel)

    def overview():
        data = rest.ok("GET", "/api/jobs/health")["data"]
        return data if data["channels"].get(channel, {}).get("messages", {}).get("unclaimed") == 1 else None

    data = eventually("the channel is counted", overview)
    assert set(data["totals"]) >= {"unclaimed", "pending", "stuck", "runners"}
    assert data["overall_status"] == "critical"
    assert data["totals"]["unclaimed"] >= 1


def test_stats_count_by_channel_and_in_total(rest, service, crew, channel):
    runner = crew.runner(service, channel)
    rest.publish(channel)
    assignment = runner.next_assignment()
    rest.publish(channel)
    rest.publish(channel, delay=60)

    def stats():
        data = rest.ok("GET", "/api/jobs/stats")["data"]
        mine = data["channels"].get(channel, {})
        return data if (mine.get("queued_count"), mine.get("inflight_count")) == (1, 1) else None

    data = eventually("the channel is counted", stats)
    mine = data["channels"][channel]
    assert mine["scheduled_count"] == 1
    assert mine["stream_length"] == 2
    assert mine["pending_count"] == mine["db_running"] == 1
    assert "runners" in mine
    assert set(mine["metrics"]) >= {"jobs_per_minute", "success_rate", "avg_duration_ms"}
    totals = data["totals"]
    assert set(totals) >= {
        "pending", "queued", "inflight", "running", "running_active", "running_stale", "completed", "failed",
        "scheduled", "runners_active",
    }  # fmt: skip
    assert totals["pending"] == totals["queued"] and totals["inflight"] == totals["running"]
    assert totals["running"] == totals["running_active"] + totals["running_stale"]
    assert runner.runner_id in [entry["runner_id"] for entry in data["runners"]]
    assert data["scheduler"]["active"] is True
    assert "lock_holder" in data["scheduler"]
    assert runner.complete(assignment)


@pytest.mark.parametrize("name", ["", "errand.v1.Jobs", "errand.v1.Runners", "errand.v1.Health"])
def test_liveness_is_served_without_a_token(service, name):
    with grpc.insecure_channel(service.grpc_address) as bare:
        answer = liveness_pb2_grpc.HealthStub(bare).Check(liveness_pb2.HealthCheckRequest(service=name), timeout=10)
    assert answer.status == liveness_pb2.HealthCheckResponse.SERVING


def test_liveness_of_an_unknown_service_is_not_found(service):
    with grpc.insecure_channel(service.grpc_address) as bare:
        stub = liveness_pb2_grpc.HealthStub(bare)
        call = liveness_pb2.HealthCheckRequest(service="errand.v1.Nothing")
        assert code_of(lambda: stub.Check(call, timeout=10)) == grpc.StatusCode.NOT_FOUND
