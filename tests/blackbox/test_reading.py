"""What an operator and an owner may read, and how lists are filtered, sorted and paged."""

from time import time

import pytest

from waiting import eventually, iso, moment
from wire import jobs_pb2

JOB_KEYS = {
    "id", "status", "channel", "func", "created", "started_at", "finished_at", "attempt", "max_retries", "last_error",
    "metadata", "payload", "run_at", "expires_at", "broadcast", "cancel_requested", "max_exec_seconds", "runner_id",
    "modified", "duration_ms", "result", "priority", "owner", "idempotency_key",
}  # fmt: skip
SINGLE_KEYS = {"is_terminal", "is_retriable", "queue_position", "recent_events"}


def ids(body):
    return [job["id"] for job in body["data"]]


def jobs(rest, **params):
    return rest.ok("GET", "/api/jobs/job", **params)


def test_a_job_has_every_documented_field(rest, channel):
    job = rest.job(rest.publish(channel, payload={"a": 1}))
    assert set(job) >= JOB_KEYS | SINGLE_KEYS
    assert "stack_trace" not in job
    assert job["payload"] == {"a": 1}
    assert job["metadata"] == {}
    assert job["started_at"] is None and job["finished_at"] is None
    assert job["attempt"] == 0
    assert job["queue_position"] == 1
    assert job["is_terminal"] is False and job["is_retriable"] is True
    moment(job["created"])
    moment(job["modified"])


def test_a_listed_job_leaves_out_what_costs_a_query(rest, channel):
    rest.publish(channel)
    for body in (jobs(rest, channel=channel), rest.ok("GET", "/api/jobs/list", channel=channel)):
        assert set(body["data"][0]) >= JOB_KEYS
        assert not set(body["data"][0]) & (SINGLE_KEYS | {"stack_trace"})


def test_pages_follow_one_another(rest, channel):
    published = [rest.publish(channel) for _ in range(5)]
    pages = [jobs(rest, channel=channel, start=start, size=2) for start in (0, 2, 4)]
    assert [len(page["data"]) for page in pages] == [2, 2, 1]
    assert sum(map(ids, pages), []) == published[::-1]
    for page, start in zip(pages, (0, 2, 4)):
        assert (page["count"], page["start"], page["size"], page["graph"]) == (5, start, 2, "default")
    assert jobs(rest, channel=channel, start=5)["data"] == []
    assert jobs(rest, channel=channel)["size"] == 20


@pytest.mark.parametrize("field", ["created", "run_at"])
def test_lists_sort_both_ways(rest, channel, field):
    late, soon, middle = (rest.publish(channel, delay=delay) for delay in (300, 100, 200))
    by_created, by_run_at = [late, soon, middle], [soon, middle, late]
    wanted = by_created if field == "created" else by_run_at
    assert ids(jobs(rest, channel=channel, sort=field)) == wanted
    assert ids(jobs(rest, channel=channel, sort=f"-{field}")) == wanted[::-1]


@pytest.mark.parametrize("field", ["modified", "started_at", "finished_at"])
def test_lists_sort_by_what_happened(rest, service, crew, channel, field):
    runner = crew.runner(service, channel)
    published = [rest.publish(channel) for _ in range(3)]
    for _ in published:
        assert runner.complete(runner.next_assignment())
    by_field = sorted(jobs(rest, channel=channel)["data"], key=lambda job: moment(job[field]))
    assert ids(jobs(rest, channel=channel, sort=field)) == [job["id"] for job in by_field]


def test_an_unknown_sort_field_falls_back_to_newest_first(rest, channel):
    published = [rest.publish(channel) for _ in range(3)]
    assert ids(jobs(rest, channel=channel, sort="payload")) == published[::-1]
    assert ids(jobs(rest, channel=channel, sort="-nonsense")) == published[::-1]


@pytest.mark.parametrize("graph", ["default", "detail", "status", "list"])
def test_every_graph_is_known(rest, channel, graph):
    job_id = rest.publish(channel)
    body = jobs(rest, channel=channel, graph=graph)
    assert body["graph"] == graph
    assert ids(body) == [job_id]
    assert rest.job(job_id, graph=graph)["status"] == "pending"


def test_filters_are_anded(rest, service, crew, channel):
    runner = crew.runner(service, channel, capacity=1)
    running = rest.publish(channel, func="tests.one")
    assignment = runner.next_assignment(job_id=running)
    eventually("it runs", lambda: rest.status(running) == "running")
    waiting = rest.publish(channel, func="tests.two", delay=60)
    party = rest.publish(channel, func="tests.three", broadcast=True, delay=60)
    assert ids(jobs(rest, channel=channel, status="running")) == [running]
    assert ids(jobs(rest, channel=channel, runner_id=runner.runner_id)) == [running]
    assert ids(jobs(rest, channel=channel, func="tests.two")) == [waiting]
    assert ids(jobs(rest, channel=channel, broadcast="true")) == [party]
    assert ids(jobs(rest, channel=channel, broadcast="false")) == [waiting, running]
    assert ids(jobs(rest, channel=channel, search="tests.t")) == [party, waiting]
    assert ids(jobs(rest, channel=channel, search=waiting)) == [waiting]
    assert ids(jobs(rest, channel=channel, status="running", func="tests.two")) == []
    both = rest.ok("GET", "/api/jobs/list", channel=channel, status="pending,running")
    assert ids(both) == [party, waiting, running]
    assert runner.complete(assignment)


def test_a_date_range_filters_by_creation(rest, channel):
    job_id = rest.publish(channel)
    now = time()
    assert ids(jobs(rest, channel=channel, dr_start=iso(now - 60), dr_end=iso(now + 60))) == [job_id]
    assert ids(jobs(rest, channel=channel, dr_start=iso(now + 60))) == []
    assert ids(jobs(rest, channel=channel, dr_end=iso(now - 60))) == []


def test_since_is_inclusive(rest, channel):
    first, second = rest.publish(channel), rest.publish(channel)
    since = rest.job(second)["created"]
    listed = ids(rest.ok("GET", "/api/jobs/list", channel=channel, since=since))
    assert listed[0] == second
    assert first in ids(rest.ok("GET", "/api/jobs/list", channel=channel, since=rest.job(first)["created"]))
    assert ids(rest.ok("GET", "/api/jobs/list", channel=channel, since=iso(time() + 60))) == []


def test_limit_takes_the_newest(rest, channel):
    published = [rest.publish(channel) for _ in range(3)]
    assert ids(rest.ok("GET", "/api/jobs/list", channel=channel, limit=2)) == published[:0:-1]


@pytest.mark.parametrize(
    ("path", "param", "value"),
    [
        ("list", "limit", "many"), ("list", "limit", "-1"), ("list", "since", "yesterday"), ("list", "status", "bogus"),
        ("list", "status", "pending,bogus"), ("job", "size", "x"), ("job", "size", "-1"), ("job", "start", "-1"),
        ("job", "start", "x"), ("job", "graph", "bogus"), ("job", "status", "bogus"), ("job", "dr_start", "x"),
        ("job", "dr_end", "x"), ("job", "broadcast", "perhaps"),
    ],
)  # fmt: skip
def test_a_bad_value_of_a_known_parameter_is_refused_by_its_name(rest, path, param, value):
    assert param in rest.refused(400, "GET", f"/api/jobs/{path}", params={param: value})


def test_owners_see_only_their_own(rest, channel):
    alice, bob = rest.who("alice"), rest.who("bob")
    hers, his = alice.publish(channel), bob.publish(channel)
    assert ids(alice.ok("GET", "/api/jobs/list", channel=channel)) == [hers]
    assert ids(jobs(bob, channel=channel)) == [his]
    assert jobs(bob, channel=channel)["count"] == 1
    assert ids(jobs(rest.who("viewer", "view_jobs"), channel=channel)) == [his, hers]
    assert ids(jobs(rest, channel=channel)) == [his, hers]
    for method, path, body in [
        ("GET", f"/api/jobs/job/{hers}", None),
        ("GET", f"/api/jobs/job/{hers}/events", None),
        ("POST", f"/api/jobs/job/{hers}", {"get_status": True}),
        ("POST", f"/api/jobs/job/{hers}", {"publish_job": {}}),
    ]:
        assert bob.refused(404, method, path, body) == "Job not found"
    assert alice.job(hers)["owner"] == "alice"
    assert alice.events(hers)[0]["event"] == "created"
    assert alice.act(hers, get_status=True)["data"]["id"] == hers
    assert alice.job(alice.act(hers, publish_job={})["job_id"])["owner"] == "alice"


def test_queue_position_counts_by_priority_and_age(rest, service, channel):
    old, young = rest.publish(channel), rest.publish(channel)
    assert [rest.job(job_id)["queue_position"] for job_id in (old, young)] == [1, 2]
    urgent = service.grpc().publish(channel=channel, priority=5).id
    later = rest.publish(channel, delay=60)
    positions = [rest.act(job_id, get_status=True)["data"]["queue_position"] for job_id in (urgent, old, young, later)]
    assert positions == sorted(positions) and positions[0] >= 1 and len(set(positions)) == 4


def test_recent_events_are_the_latest_ten_oldest_first(rest, service, crew, channel):
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel, max_retries=0)
    for _ in range(8):
        assert runner.release(runner.next_assignment(job_id=job_id))
    assert runner.complete(runner.next_assignment(job_id=job_id))
    everything = rest.events(job_id)
    assert len(everything) > 10
    recent = rest.job(job_id)["recent_events"]
    assert [event["event"] for event in recent] == [event["event"] for event in everything[-10:]]
    assert recent[-1]["event"] == "completed"


def test_a_result_and_a_duration_are_kept(rest, service, crew, channel):
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel)
    assert runner.complete(runner.next_assignment(), result='{"sent": 3}', metadata='{"done": true}')
    job = rest.job(job_id)
    assert (job["status"], job["result"], job["metadata"]) == ("completed", {"sent": 3}, {"done": True})
    assert job["is_terminal"] is True and job["is_retriable"] is False
    assert job["queue_position"] is None
    assert abs(job["duration_ms"] - 1000 * (moment(job["finished_at"]) - moment(job["started_at"]))) <= 2


def test_grpc_pages_by_token(service, channel):
    client = service.grpc()
    published = [client.publish(channel=channel).id for _ in range(5)]
    listed, token = [], ""
    while True:
        page = client.jobs.ListJobs(jobs_pb2.ListJobsRequest(channel=channel, page_size=2, page_token=token))
        listed += [job.id for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
    assert listed == published[::-1]
