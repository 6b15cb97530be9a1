"""Publishing, reading and steering, with both clients."""

import asyncio
import datetime
import inspect
import threading

import pytest
from service import QUICK, eventually

import errand

UTC = datetime.timezone.utc
Status = errand.JobStatus


def test_a_job_is_published_with_every_option(client, channel):
    run_at = datetime.datetime.now(UTC).replace(microsecond=0) + datetime.timedelta(hours=1)
    published = client.publish(
        "reports.render",
        {"month": "may", "n": 2**60, "ä": None},
        channel=channel,
        run_at=run_at,
        expires_at=run_at + datetime.timedelta(minutes=5),
        max_retries=7,
        backoff_base=1.5,
        backoff_max=datetime.timedelta(minutes=2),
        max_exec_seconds=30,
        idempotency_key="may",
        priority=-4,
    )
    job = client.get(published.id)
    assert (published.job.id, published.deduplicated) == (job.id, False)
    assert (job.func, job.channel, job.status) == ("reports.render", channel, Status.PENDING)
    assert job.payload == {"month": "may", "n": 2**60, "ä": None}
    assert (job.run_at, job.expires_at) == (run_at, run_at + datetime.timedelta(minutes=5))
    assert (job.max_retries, job.backoff_base, job.backoff_max_seconds) == (7, 1.5, 120)
    assert (job.max_exec_seconds, job.idempotency_key, job.priority) == (30, "may", -4)
    assert (job.owner, job.attempt, job.result, job.is_terminal) == ("operator", 0, None, False)


def test_defaults_are_the_services(client, channel):
    job = client.publish("f", channel=channel, delay=60, expires_in=600).job
    assert (job.payload, job.max_retries, job.backoff_base, job.max_exec_seconds) == ({}, 3, 2.0, None)
    assert (job.expires_at - job.run_at).total_seconds() == 600


def test_a_function_is_named_by_itself(client, channel):
    import functions

    assert client.publish(functions.echo, channel=channel).job.func == "functions.echo"
    assert client.publish(functions.named_function, channel=channel).job.func == "named"


def test_the_same_key_makes_one_job(client, channel):
    first = client.publish("f", {"n": 1}, channel=channel, idempotency_key=channel)
    again = client.publish("f", {"n": 1}, channel=channel, idempotency_key=channel)
    assert (again.id, again.deduplicated) == (first.id, True)
    with pytest.raises(errand.Conflict):
        client.publish("f", {"n": 2}, channel=channel, idempotency_key=channel)


def test_a_batch_is_stored_in_order_or_not_at_all(client, channel):
    specs = [errand.JobSpec("f", {"n": n}, channel=channel) for n in range(3)]
    receipts = client.publish_batch(specs)
    assert [client.get(receipt.id).payload["n"] for receipt in receipts] == [0, 1, 2]
    with pytest.raises(errand.Invalid):
        client.publish_batch([*specs, errand.JobSpec("not a name", channel=channel)])
    assert client.page(errand.Filters(channel=channel), count=True).total == 3


def test_a_template_gives_what_is_not_said(client, channel):
    template = client.publish("f", {"n": 1}, channel=channel, priority=3, max_retries=1)
    job = client.get(client.publish_from(template.id, {"n": 2}, max_retries=0))
    assert (job.func, job.payload, job.priority, job.max_retries) == ("f", {"n": 2}, 3, 0)


def test_status_tells_events_and_place(client, channel):
    first, second = (client.publish("f", channel=channel).id for _ in range(2))
    assert (client.status(first).queue_position, client.status(second).queue_position) == (1, 2)
    assert next(event.kind for event in client.events(first)) == "created"
    client.cancel(first)
    report = client.status(first)
    assert (report.queue_position, report.recent_events[-1].kind) == (None, "canceled")


def test_lists_are_filtered_ordered_and_paged(client, channel):
    ids = [receipt.id for receipt in client.publish_batch([errand.JobSpec("f", channel=channel)] * 5)]
    client.cancel(ids[0])
    pending = errand.Filters(channel=channel, status="pending", order="created")
    assert [job.id for job in client.list_jobs(pending)] == ids[1:]
    either = errand.Filters(channel=channel, status=[Status.CANCELED, "pending"])
    assert [job.id for job in client.list_jobs(either, limit=3)] == ids[:1:-1]
    page = client.page(pending, limit=3, count=True)
    assert (len(page.jobs), page.total) == (3, 4)
    assert [job.id for job in client.page(pending, limit=3, page_token=page.next_page_token).jobs] == ids[4:]
    with pytest.raises(ValueError, match="cannot be ordered by 'size'"):
        client.page(errand.Filters(order="size"))


def test_cancel_retry_and_delete(client, channel):
    job_id = client.publish("f", channel=channel).id
    cancellation = client.cancel(job_id)
    assert (cancellation.job.status, cancellation.forced) == (Status.CANCELED, False)
    with pytest.raises(errand.Refused, match="Cannot cancel job in canceled state"):
        client.cancel(job_id)
    again = client.get(client.retry(job_id, delay=60))
    assert (again.status, again.func) == (Status.PENDING, "f")
    assert again.run_at is not None
    client.delete(job_id)
    with pytest.raises(errand.NotFound, match="Job not found") as raised:
        client.get(job_id)
    assert raised.value.reason == "JOB_NOT_FOUND"


def test_a_job_without_a_result_raises_what_became_of_it(client, channel):
    canceled = client.publish("f", channel=channel).id
    client.cancel(canceled)
    with pytest.raises(errand.JobCanceled):
        client.result(canceled, timeout=10)
    with pytest.raises(errand.JobExpired):
        client.result(client.publish("f", channel=channel, expires_in=1).id, timeout=30)
    with pytest.raises(errand.DeadlineExceeded, match="has not ended"):
        client.result(client.publish("f", channel=channel).id, timeout=0.3)


def test_a_watch_tells_events_until_the_job_ends(client, channel):
    job_id = client.publish("f", channel=channel).id
    kinds = []
    watching = threading.Thread(target=lambda: kinds.extend(change.event.kind for change in client.watch(job_id)))
    watching.start()
    client.cancel(job_id)
    watching.join(10)
    assert not watching.is_alive()
    assert kinds in ([], ["canceled"])


def test_refusals_say_why(service, client, channel):
    with pytest.raises(errand.Invalid, match="func") as raised:
        client.publish("not a name", channel=channel)
    assert raised.value.field == "func"
    with pytest.raises(errand.TooLarge, match="Payload exceeds maximum size"):
        client.publish("f", {"text": "x" * 2_000_000}, channel=channel)
    with errand.Client(service.url, "nonsense") as stranger, pytest.raises(errand.Unauthenticated):
        stranger.get("0" * 32)
    job_id = client.publish("f", channel=channel).id
    with errand.Client(service.url, service.token("other")) as other:
        with pytest.raises(errand.NotFound):
            other.get(job_id)
        own = other.publish("f", channel=channel).id
        with pytest.raises(errand.Denied, match="manage_jobs required"):
            other.cancel(own)


@pytest.mark.parametrize(
    ("payload", "options"),
    [
        ([1], {}),
        ({"n": float("nan")}, {}),
        ({"n": object()}, {}),
        ({}, {"delay": 1, "run_at": datetime.datetime.now(UTC)}),
        ({}, {"delay": -1}),
        ({}, {"priority": 2**40}),
    ],
)
def test_what_cannot_be_sent_is_refused_here(client, payload, options):
    with pytest.raises((TypeError, ValueError)):
        client.publish("f", payload, **options)


def test_the_next_server_is_used_where_one_is_gone(service, channel):
    with errand.Client(f"127.0.0.1:9, {service.url}", service.operator) as client:
        assert client.publish("f", channel=channel).id


def test_an_unreachable_service_is_unavailable():
    with errand.Client("127.0.0.1:9", "t") as client, pytest.raises(errand.Unavailable, match="cannot reach"):
        client.get("0" * 32)


def test_reading_and_waiting_outlive_a_restart(crew, channel):
    service = crew.service(*QUICK)
    with errand.Client(service.url, service.operator) as client:
        job_id = client.publish("functions.echo", {"n": 1}, channel=channel).id
        results = []
        waiting = threading.Thread(target=lambda: results.append(client.result(job_id, timeout=60)))
        waiting.start()
        service.process.end()
        service.start()
        assert eventually("it is read again", lambda: client.get(job_id))
        crew.runner(service, channel)
        waiting.join(60)
        assert results == [{"n": 1}]


def test_a_token_can_be_renewed(service, channel):
    tokens = iter(["nonsense", service.operator])
    with errand.Client(service.url, lambda: next(tokens)) as client:
        with pytest.raises(errand.Unauthenticated):
            client.publish("f", channel=channel)
        assert client.publish("f", channel=channel).id


@pytest.mark.parametrize("server", ["ftp://a:1", "http://a", "a:1/path", ",", "http://"])
def test_an_address_that_is_none_is_refused(server):
    with pytest.raises(ValueError, match="server"):
        errand.Client(server)


def test_asyncio_has_all_of_it(crew, service, channel):
    crew.runner(service, channel)

    async def story():
        async with errand.AsyncClient(f"127.0.0.1:9,{service.url}", service.operator) as client:
            published = await client.publish("functions.echo", {"n": 1}, channel=channel)
            assert await client.result(published.id, timeout=30) == {"n": 1}
            kinds = [change.event.kind async for change in client.watch(published.id)]
            receipts = await client.publish_batch(
                errand.JobSpec("functions.echo", {"n": n}, channel=channel) for n in range(20)
            )
            results = await asyncio.gather(*(client.result(receipt.id, timeout=30) for receipt in receipts))
            assert [result["n"] for result in results] == list(range(20))
            assert len(await client.list_jobs(errand.Filters(channel=channel), limit=7)) == 7
            job_id = (await client.publish("functions.chatter", {"lines": 3}, channel=channel)).id
            await client.wait(job_id)
            assert [line.message async for line in client.logs(job_id)] == ["line 0", "line 1", "line 2"]
            assert "completed" in [event.kind for event in await client.events(job_id)]
            delayed = (await client.publish("f", channel=channel, delay=60)).id
            assert (await client.status(delayed)).queue_position
            assert (await client.cancel(delayed)).job.status is Status.CANCELED
            with pytest.raises(errand.JobCanceled):
                await client.result(delayed)
            assert (await client.get(await client.retry(delayed, delay=60))).status is Status.PENDING
            assert await client.publish_from(delayed, {"n": 2})
            await client.delete(delayed)
            with pytest.raises(errand.NotFound):
                await client.get(delayed)
            with pytest.raises(errand.DeadlineExceeded):
                await client.wait((await client.publish("f", channel=channel, delay=60)).id, timeout=0.2)
            return kinds

    assert asyncio.run(story()) in ([], ["completed"])


def test_both_clients_have_the_same_methods():
    def signatures(kind):
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(method).parameters) for name, method in methods if name[0] != "_"}

    assert signatures(errand.Client) == signatures(errand.AsyncClient)
