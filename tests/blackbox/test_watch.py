"""Following jobs as they go."""

import threading

import grpc
import pytest

from waiting import eventually
from wire import code_of, job_pb2, jobs_pb2

KIND = job_pb2.JobEventKind.Value


class Watch:
    """Collects what WatchJobs tells, in the background."""

    def __init__(self, client, **request):
        self.seen = []
        self.error = None
        self.ended = threading.Event()
        self.stream = client.jobs.WatchJobs(jobs_pb2.WatchJobsRequest(**request))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            for answer in self.stream:
                self.seen.append(answer)
        except grpc.RpcError as error:
            self.error = error
        self.ended.set()

    def kinds(self, job_id):
        return [answer.event.kind for answer in list(self.seen) if answer.event.job_id == job_id]


def test_a_watch_of_a_job_ends_when_the_job_does(service, crew, channel):
    client = service.grpc()
    job_id = client.publish(channel=channel).id
    watch = Watch(client, job_id=job_id)
    runner = crew.runner(service, channel)
    assert runner.complete(runner.next_assignment(job_id=job_id), result="7")
    assert watch.ended.wait(10), "the watch goes on after the job's end"
    assert watch.error is None
    assert watch.seen[-1].event.kind == KIND("JOB_EVENT_KIND_COMPLETED")
    assert watch.seen[-1].job.result_json == "7"
    assert watch.seen[-1].job.status == job_pb2.JOB_STATUS_COMPLETED


def test_a_watch_of_an_ended_job_ends_at_once(service, channel):
    client = service.grpc()
    job_id = client.publish(channel=channel).id
    client.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job_id))
    watch = Watch(client, job_id=job_id)
    assert watch.ended.wait(10)
    assert watch.error is None


@pytest.mark.parametrize("ending", ["canceled", "failed"])
def test_every_ending_ends_a_watch(service, crew, channel, ending):
    client = service.grpc()
    runner = crew.runner(service, channel)
    job_id = client.publish(channel=channel).id
    watch = Watch(client, job_id=job_id)
    assignment = runner.next_assignment(job_id=job_id)
    if ending == "failed":
        assert runner.fail(assignment, permanent=True)
    else:
        client.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job_id))
        assert runner.canceled(assignment)
    assert watch.ended.wait(10)
    assert watch.seen[-1].event.kind == KIND(f"JOB_EVENT_KIND_{ending.upper()}")


def seeing(client, **request):
    """A watch that is known to be open: a first job showed up in it."""
    watch = Watch(client, **request)

    def opened():
        assert not watch.ended.is_set(), watch.error
        probe = client.publish(channel=request["channel"], func="tests.probe", delay_seconds=600).id
        try:
            eventually("the probe shows", lambda: watch.kinds(probe), seconds=0.5)
        except AssertionError:
            return False
        return True

    eventually("the watch is open", opened)
    return watch


def test_a_watch_of_a_channel_sees_every_job_of_it_and_no_other(service, crew, channel):
    client = service.grpc()
    watch = seeing(client, channel=channel)
    other = client.publish(channel=channel + "-other").id
    runner = crew.runner(service, channel)
    published = [client.publish(channel=channel).id for _ in range(3)]
    for _ in published:
        assert runner.complete(runner.next_assignment())
    done = KIND("JOB_EVENT_KIND_COMPLETED")
    eventually("all three completed in the watch", lambda: all(done in watch.kinds(job_id) for job_id in published))
    assert all(watch.kinds(job_id)[0] == KIND("JOB_EVENT_KIND_CREATED") for job_id in published)
    assert watch.kinds(other) == []
    watch.stream.cancel()


def test_a_watch_shows_only_what_its_caller_may_see(service, channel):
    alice, bob = service.grpc("alice", "run_jobs"), service.grpc("bob", "run_jobs")
    watch = seeing(alice, channel=channel)
    his = bob.publish(channel=channel).id
    hers = alice.publish(channel=channel).id
    eventually("her own shows", lambda: watch.kinds(hers))
    assert watch.kinds(his) == []
    watch.stream.cancel()
    request = jobs_pb2.WatchJobsRequest(job_id=hers)
    assert code_of(lambda: list(bob.jobs.WatchJobs(request, timeout=10))) == grpc.StatusCode.NOT_FOUND


def test_logs_are_kept_in_order(service, crew, channel):
    client = service.grpc()
    runner = crew.runner(service, channel)
    job_id = client.publish(channel=channel).id
    assignment = runner.next_assignment(job_id=job_id)
    runner.progress(assignment, logs=["one", "two"])
    runner.progress(assignment, logs=["three"])
    assert runner.complete(assignment)

    def logs(**more):
        return client.jobs.ListJobLogs(jobs_pb2.ListJobLogsRequest(job_id=job_id, **more))

    eventually("all lines are there", lambda: len(logs().logs) == 3)
    assert [line.message for line in logs().logs] == ["one", "two", "three"]
    for line in logs().logs:
        assert (line.kind, line.channel, line.job_id) == (job_pb2.LOG_KIND_INFO, channel, job_id)
    assert list(logs(kinds=[job_pb2.LOG_KIND_ERROR]).logs) == []
    first = logs(page_size=2)
    assert [line.message for line in first.logs] == ["one", "two"]
    assert [line.message for line in logs(page_size=2, page_token=first.next_page_token).logs] == ["three"]
