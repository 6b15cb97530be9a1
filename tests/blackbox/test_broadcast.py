"""A broadcast job runs once on every runner that is alive when its time comes."""

from waiting import eventually
from wire import jobs_pb2


def test_every_runner_executes_it_once_and_the_parent_tells(rest, service, crew, channel):
    runners = [crew.runner(service, channel, capacity=3) for _ in range(2)]
    stranger = crew.runner(service, channel + "-other")
    job_id = rest.publish(channel, func="tests.reload", payload={"a": 1}, broadcast=True)
    for runner in runners:
        assignment = runner.next_assignment()
        assert assignment.job.func == "tests.reload"
        assert assignment.job.payload_json.replace(" ", "") == '{"a":1}'
        assert assignment.job.parent_id == job_id
        assert not rest.job(job_id)["is_terminal"]
        assert runner.complete(assignment)
    eventually("the parent completed", lambda: rest.status(job_id) == "completed")
    assert 2 in rest.job(job_id)["metadata"].values()
    assert all(runner.idle() for runner in [*runners, stranger])
    assert [job["id"] for job in rest.ok("GET", "/api/jobs/list", channel=channel)["data"]] == [job_id]


def test_one_failure_fails_the_parent(rest, service, crew, channel):
    good, bad = (crew.runner(service, channel) for _ in range(2))
    job_id = rest.publish(channel, broadcast=True)
    assert good.complete(good.next_assignment())
    assert bad.fail(bad.next_assignment(), permanent=True)
    eventually("the parent failed", lambda: rest.status(job_id) == "failed")


def test_without_a_runner_it_waits_for_the_first(rest, service, crew, channel):
    job_id = rest.publish(channel, broadcast=True)
    assert rest.status(job_id) == "pending"
    runner = crew.runner(service, channel)
    assert runner.complete(runner.next_assignment())
    eventually("the parent completed", lambda: rest.status(job_id) == "completed")


def test_without_a_runner_it_expires(rest, channel):
    job_id = rest.publish(channel, broadcast=True, expires_in=1)
    eventually("it expired", lambda: rest.status(job_id) == "expired", seconds=8)


def test_a_late_runner_does_not_take_part(rest, service, crew, channel):
    first = crew.runner(service, channel)
    job_id = rest.publish(channel, broadcast=True)
    assignment = first.next_assignment()
    late = crew.runner(service, channel)
    assert first.complete(assignment)
    eventually("the parent completed", lambda: rest.status(job_id) == "completed")
    assert late.idle()


def test_parts_are_listed_where_they_are_asked_for(service, crew, channel):
    client = service.grpc()
    runners = [crew.runner(service, channel) for _ in range(2)]
    parent = client.publish(channel=channel, broadcast=True)
    for runner in runners:
        assert runner.complete(runner.next_assignment())
    parts = client.jobs.ListJobs(jobs_pb2.ListJobsRequest(parent_id=parent.id)).jobs
    assert {part.parent_id for part in parts} == {parent.id}
    assert {part.runner_id for part in parts} == {runner.runner_id for runner in runners}
