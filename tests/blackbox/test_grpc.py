"""The gRPC side: publishing in bulk, deadlines, refusals a program can read, reflection."""

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_reflection.v1alpha import reflection_pb2

from wire import Grpc, code_of, job_pb2, jobs_pb2, reason_of, runners_pb2


def spec(channel, **fields):
    return jobs_pb2.JobSpec(**{"func": "tests.echo", "payload_json": "{}", "channel": channel, **fields})


def listed(client, channel):
    return client.jobs.ListJobs(jobs_pb2.ListJobsRequest(channel=channel)).jobs


def refusal_of(call):
    with pytest.raises(grpc.RpcError) as refusal:
        call()
    return refusal.value


def test_a_published_job_comes_back_whole(grpc_client, channel):
    job = grpc_client.publish(channel=channel, payload='{"a":1}', priority=4, max_exec_seconds=9, delay_seconds=60)
    assert len(job.id) == 32 and job.id == job.id.lower()
    assert (job.channel, job.func, job.payload_json, job.priority) == (channel, "tests.echo", '{"a":1}', 4)
    assert (job.status, job.attempt, job.max_retries) == (job_pb2.JOB_STATUS_PENDING, 0, 3)
    assert (job.backoff_base, job.backoff_max_seconds, job.max_exec_seconds) == (2.0, 3600, 9)
    assert job.owner == "operator"
    assert grpc_client.job(job.id) == job


def test_a_message_over_the_limit_is_refused_with_a_reason(grpc_client, channel):
    request = jobs_pb2.PublishJobRequest(spec=spec(channel, payload_json='{"a":"' + "x" * (17 << 20) + '"}'))
    refusal = refusal_of(lambda: grpc_client.jobs.PublishJob(request))
    assert (refusal.code(), reason_of(refusal)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_LARGE")
    assert "16777216 bytes" in refusal.details()
    assert listed(grpc_client, channel) == []


def test_a_call_that_does_not_exist_is_refused_with_a_reason(grpc_client):
    call = grpc_client.channel.unary_unary("/errand.v1.Jobs/Vanish", lambda message: message, lambda message: message)
    refusal = refusal_of(lambda: call(b""))
    assert (refusal.code(), reason_of(refusal)) == (grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED")


def test_ids_sort_by_creation(grpc_client, channel):
    ids = [grpc_client.publish(channel=channel).id for _ in range(5)]
    assert ids == sorted(ids)


def test_many_are_published_in_order(grpc_client, channel):
    request = jobs_pb2.PublishJobsRequest(specs=[spec(channel, func=f"f{n}") for n in range(1000)])
    receipts = grpc_client.jobs.PublishJobs(request, timeout=60).receipts
    assert len({receipt.job_id for receipt in receipts}) == 1000
    assert grpc_client.job(receipts[0].job_id).func == "f0"
    assert grpc_client.job(receipts[999].job_id).func == "f999"


def test_one_bad_spec_refuses_them_all(grpc_client, channel):
    request = jobs_pb2.PublishJobsRequest(specs=[spec(channel), spec(channel, func="two words"), spec(channel)])
    assert refusal_of(lambda: grpc_client.jobs.PublishJobs(request)).code() == grpc.StatusCode.INVALID_ARGUMENT
    assert len(listed(grpc_client, channel)) == 0


def test_one_conflicting_key_refuses_them_all(grpc_client, channel):
    key = f"k-{channel}"
    grpc_client.publish(channel=channel, idempotency_key=key)
    request = jobs_pb2.PublishJobsRequest(
        specs=[spec(channel), spec(channel, idempotency_key=key, payload_json='{"other":1}')]
    )
    assert refusal_of(lambda: grpc_client.jobs.PublishJobs(request)).code() == grpc.StatusCode.ALREADY_EXISTS
    assert len(listed(grpc_client, channel)) == 1


def test_more_than_a_thousand_at_once_are_refused(grpc_client, channel):
    request = jobs_pb2.PublishJobsRequest(specs=[spec(channel)] * 1001)
    refusal = refusal_of(lambda: grpc_client.jobs.PublishJobs(request))
    assert refusal.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)


def test_a_stream_answers_in_order_and_goes_on_after_a_refusal(grpc_client, channel):
    specs = [spec(channel, func="two words" if n in (3, 7) else f"f{n}") for n in range(10)]
    requests = (jobs_pb2.PublishJobStreamRequest(spec=one) for one in specs)
    answers = list(grpc_client.jobs.PublishJobStream(requests, timeout=30))
    assert [answer.WhichOneof("outcome") for answer in answers] == [
        "refusal" if n in (3, 7) else "receipt" for n in range(10)
    ]
    for n, answer in enumerate(answers):
        if n in (3, 7):
            assert answer.refusal.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            assert "func" in answer.refusal.message
        else:
            assert grpc_client.job(answer.receipt.job_id).func == f"f{n}"


def test_a_stream_tells_a_repeated_key(grpc_client, channel):
    one = jobs_pb2.PublishJobStreamRequest(spec=spec(channel, idempotency_key=f"k-{channel}"))
    first, second = grpc_client.jobs.PublishJobStream(iter([one, one]), timeout=30)
    assert first.receipt.job_id == second.receipt.job_id
    assert (first.receipt.deduplicated, second.receipt.deduplicated) == (False, True)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"func": ""}, "func"),
        ({"payload_json": "[]"}, "payload"),
        ({"payload_json": "{"}, "payload"),
        ({"payload_json": ""}, "payload"),
        ({"channel": "two words"}, "channel"),
        ({"backoff_base": -1.0}, "backoff_base"),
        ({"backoff_base": float("nan")}, "backoff_base"),
        ({"run_at": Timestamp(seconds=10**12)}, "run_at"),
    ],
)
def test_a_bad_field_is_named(grpc_client, channel, fields, field):
    request = jobs_pb2.PublishJobRequest(spec=spec(channel, **fields) if "channel" not in fields else spec("two words"))
    refusal = refusal_of(lambda: grpc_client.jobs.PublishJob(request))
    assert refusal.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field in refusal.details()
    assert reason_of(refusal)


def test_a_request_without_a_spec_is_refused(grpc_client):
    refusal = refusal_of(lambda: grpc_client.jobs.PublishJob(jobs_pb2.PublishJobRequest()))
    assert refusal.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_payload_over_the_limit_is_exhausting(grpc_client, channel):
    payload = '{"a":"%s"}' % ("x" * 1024 * 1024)
    refusal = refusal_of(lambda: grpc_client.publish(channel=channel, payload=payload))
    assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_every_refusal_has_a_reason(service, grpc_client, channel):
    job_id = grpc_client.publish(channel=channel).id
    grpc_client.jobs.CancelJob(jobs_pb2.CancelJobRequest(job_id=job_id))
    plain = service.grpc("plain", "run_jobs")
    again = jobs_pb2.CancelJobRequest(job_id=job_id)
    for wanted, call in [
        (grpc.StatusCode.NOT_FOUND, lambda: grpc_client.job("0" * 32)),
        (grpc.StatusCode.FAILED_PRECONDITION, lambda: grpc_client.jobs.CancelJob(again)),
        (grpc.StatusCode.PERMISSION_DENIED, lambda: plain.runners.ListRunners(runners_pb2.ListRunnersRequest())),
        (grpc.StatusCode.UNAUTHENTICATED, lambda: Grpc(service.grpc_address).job(job_id)),
        (grpc.StatusCode.UNAUTHENTICATED, lambda: Grpc(service.grpc_address, "garbage").job(job_id)),
    ]:
        refusal = refusal_of(call)
        assert refusal.code() == wanted
        assert reason_of(refusal), f"{wanted} without a reason"


def test_a_deadline_ends_a_call(service, crew, channel):
    runner = crew.runner(service, channel, replies=False)
    client = service.grpc()
    request = runners_pb2.PingRunnerRequest(runner_id=runner.runner_id)
    request.timeout.FromSeconds(60)
    assert code_of(lambda: client.runners.PingRunner(request, timeout=0.3)) == grpc.StatusCode.DEADLINE_EXCEEDED
    assert client.publish(channel=channel).id


def test_a_clone_takes_its_overrides(grpc_client, channel):
    template = grpc_client.publish(channel=channel, payload='{"a":1}', max_retries=7, priority=2)
    overrides = jobs_pb2.JobSpec(max_retries=0)
    request = jobs_pb2.CloneJobRequest(template_job_id=template.id, overrides=overrides)
    clone = grpc_client.job(grpc_client.jobs.CloneJob(request).job_id)
    assert (clone.payload_json, clone.channel, clone.max_retries, clone.priority) == ('{"a":1}', channel, 0, 2)


def test_reflection_lists_the_services(service):
    client = service.grpc()
    call = client.channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    answers = list(call(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10))
    names = {entry.name for entry in answers[0].list_services_response.service}
    assert names >= {"errand.v1.Jobs", "errand.v1.Runners", "errand.v1.Health", "grpc.health.v1.Health"}


def test_an_unknown_method_is_unimplemented(service):
    client = service.grpc()
    call = client.channel.unary_unary("/errand.v1.Jobs/Nothing", bytes, bytes)
    assert code_of(lambda: call(b"", timeout=10)) == grpc.StatusCode.UNIMPLEMENTED
