"""What functions are given, and what becomes of what they return and raise."""

import pytest
from service import eventually

import errand


def publish(client, channel, name, payload=None, **options):
    return client.publish(f"functions.{name}", payload or {}, channel=channel, **options).id


def test_a_result_comes_back_as_it_was_returned(client, channel, runner):
    payload = {"z": 1, "a": [None, True, 2**70, "ä€𝄞", {"deep": [1.5]}]}
    assert client.result(publish(client, channel, "echo", payload), timeout=30) == payload


def test_a_function_of_the_documented_system_runs_unchanged(client, channel, runner):
    job_id = publish(client, channel, "documented", {"recipients": ["a@example.com", "b@example.com"]})
    job = client.wait(job_id, timeout=30)
    assert (job.status, job.result) == (errand.JobStatus.COMPLETED, "completed")
    assert job.metadata == {"emails_sent": 2}
    lines = list(client.logs(job_id))
    assert [(line.kind, line.message) for line in lines] == [
        ("info", "sent to a@example.com"),
        ("info", "sent to b@example.com"),
    ]
    assert lines[1].meta == {"address": "b@example.com"}


def test_a_function_knows_its_job(client, channel, runner):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    job_id = publish(client, channel, "about", max_retries=7, max_exec_seconds=600, traceparent=trace)
    said = client.result(job_id, timeout=30)
    job = client.get(job_id)
    assert said["id"] == job_id
    assert (said["func"], said["channel"]) == ("functions.about", channel)
    assert (said["attempt"], said["max_retries"], said["traceparent"], said["current"]) == (1, 7, trace, True)
    assert abs(said["deadline"] - job.started_at.timestamp() - 600) < 30


def test_without_a_limit_there_is_no_deadline(client, channel, runner):
    assert client.result(publish(client, channel, "about"), timeout=30)["deadline"] is None


def test_what_a_function_publishes_carries_its_trace_on(crew, service, client, channel):
    crew.runner(service, channel, ERRAND_SERVER=service.url, PUBLISHER_TOKEN=service.operator)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    child_id = client.result(publish(client, channel, "publish_another", traceparent=trace), timeout=30)
    assert client.get(child_id).traceparent == trace


def test_an_exception_fails_with_its_traceback(client, channel, runner):
    job_id = publish(client, channel, "fail", {"who": "me"}, max_retries=0)
    with pytest.raises(errand.JobFailed) as raised:
        client.result(job_id, timeout=30)
    job = raised.value.job
    assert job.last_error == "ValueError: broken by me"
    assert 'raise ValueError(f"broken by' in job.stack_trace
    assert "invoke.py" not in job.stack_trace


def test_a_failure_is_retried(client, channel, runner):
    job = client.wait(publish(client, channel, "fail", max_retries=2, backoff_base=0.01), timeout=30)
    assert (job.status, job.attempt) == (errand.JobStatus.FAILED, 3)


def test_permanent_fails_for_good(client, channel, runner):
    job = client.wait(publish(client, channel, "fail_for_good", max_retries=5), timeout=30)
    assert (job.status, job.attempt, job.last_error) == (errand.JobStatus.FAILED, 1, "no such customer")


def test_retry_chooses_its_time(client, channel, runner):
    # The backoff would be an hour.
    job_id = publish(
        client, channel, "retry_later", {"after": 0.2}, max_retries=1, backoff_base=3600.0, expires_in=9000
    )
    assert client.result(job_id, timeout=30) == 2
    job_id = publish(client, channel, "retry_later", {"after": 3000}, max_retries=1, expires_in=9000)
    job = eventually("it waits for its retry", lambda: (j := client.get(job_id)).attempt == 1 and j.run_at and j)
    assert 2900 < (job.run_at - job.modified).total_seconds() < 3100


def test_a_result_that_json_cannot_say_fails_for_good(client, channel, runner):
    job = client.wait(publish(client, channel, "unspeakable", max_retries=5), timeout=30)
    assert (job.status, job.attempt) == (errand.JobStatus.FAILED, 1)
    assert job.last_error.startswith("the result cannot be written as JSON")


@pytest.mark.parametrize(
    "func", ["functions.nothing", "functions._private", "functions.run", "os.getcwd", "functions.os.getcwd"]
)
def test_nothing_outside_the_modules_can_be_called(client, channel, runner, func):
    job = client.wait(client.publish(func, channel=channel, max_retries=0).id, timeout=30)
    assert (job.status, job.last_error) == (errand.JobStatus.FAILED, f"this runner has no function {func!r}")


def test_a_decorated_function_has_its_name(client, channel, runner):
    assert client.result(client.publish("named", channel=channel).id, timeout=30) == "by name"


def test_metadata_is_reported_while_the_function_runs(client, channel, runner, tmp_path):
    job_id = publish(client, channel, "progress", {"folder": str(tmp_path)})
    eventually("the first step is reported", lambda: client.get(job_id).metadata == {"deep": {"step": 1}})
    (tmp_path / "go").touch()
    assert client.wait(job_id, timeout=30).metadata == {"deep": {"step": 2}}


def test_many_lines_arrive_in_order(client, channel, runner):
    job_id = publish(client, channel, "chatter", {"lines": 2500})
    client.wait(job_id, timeout=60)
    lines = list(client.logs(job_id))
    assert [line.message for line in lines] == [f"line {number}" for number in range(2500)]


def test_a_canceled_function_that_returns_early_is_canceled(client, channel, runner):
    job_id = publish(client, channel, "until_canceled", max_retries=3)
    eventually("it runs", lambda: client.get(job_id).metadata.get("started"))
    client.cancel(job_id)
    job = client.wait(job_id, timeout=30)
    assert (job.status, job.result) == (errand.JobStatus.CANCELED, None)


def test_a_canceled_function_that_never_looked_ends_by_itself(client, channel, runner):
    job_id = publish(client, channel, "deaf")
    eventually("it runs", lambda: client.get(job_id).metadata.get("started"))
    client.cancel(job_id)
    job = client.wait(job_id, timeout=30)
    assert (job.status, job.result) == (errand.JobStatus.COMPLETED, "done anyway")


def test_blocking_functions_run_at_the_same_time(client, crew, service, channel, tmp_path):
    crew.runner(service, channel, "--capacity", "20")
    payload = {"folder": str(tmp_path)}
    receipts = client.publish_batch(errand.JobSpec("functions.until_told", payload, channel=channel) for _ in range(20))
    eventually("all twenty have begun", lambda: len(list(tmp_path.glob("began-*"))) == 20)
    (tmp_path / "go").touch()
    assert [client.result(receipt.id, timeout=30) for receipt in receipts] == [1] * 20


def test_coroutines_run_at_the_same_time_on_one_thread(client, crew, service, channel):
    crew.runner(service, channel, "--capacity", "50")
    receipts = client.publish_batch(
        errand.JobSpec("functions.gather", {"seconds": 1}, channel=channel) for _ in range(50)
    )
    assert {client.result(receipt.id, timeout=30) for receipt in receipts} == {"errand-coroutines"}
    jobs = [client.get(receipt.id) for receipt in receipts]
    assert max(job.started_at for job in jobs) < min(job.finished_at for job in jobs)


def test_a_function_may_ask_for_a_process(client, channel, runner):
    thread_pid = client.result(publish(client, channel, "about"), timeout=30)["pid"]
    process_pid = client.result(client.publish("in-a-process", channel=channel).id, timeout=30)
    assert process_pid not in (thread_pid, runner.child.pid)


def test_processes_share_the_work(client, crew, service, channel):
    runner = crew.runner(service, channel, "--processes", "2")
    specs = [errand.JobSpec("busy", {"seconds": 0.5}, channel=channel) for _ in range(4)]
    pids = [client.result(receipt.id, timeout=60) for receipt in client.publish_batch(specs)]
    assert len(set(pids)) == 2
    assert client.result(publish(client, channel, "about"), timeout=30)["pid"] in pids
    assert len(runner.executors()) == 3
