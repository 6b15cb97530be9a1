"""What a publisher may say, and what becomes of it."""

import json
from concurrent.futures import ThreadPoolExecutor
from time import time

import pytest

from waiting import eventually, iso, moment

HUGE = '{"n": 12345678901234567890123, "z":1,"a":2,"u":"é","f":1.10,"e":1e400}'


def literally(text):
    """JSON with its numbers and key order as they were spelt."""
    return json.loads(text, object_pairs_hook=list, parse_int=str, parse_float=str)


def refused(rest, **fields):
    body = {"func": "tests.echo", "payload": {}, **fields}
    return rest.refused(400, "POST", "/api/jobs/publish", body)


def test_missing_parameters_are_named(rest):
    assert rest.refused(400, "POST", "/api/jobs/publish", {}) == "missing required parameters: func, payload"
    assert "payload" in rest.refused(400, "POST", "/api/jobs/publish", {"func": "f"})
    assert "func" in rest.refused(400, "POST", "/api/jobs/publish", {"payload": {}})


@pytest.mark.parametrize("payload", [[], "text", 3, True, None])
def test_a_payload_is_an_object(rest, payload):
    error = refused(rest, payload=payload)
    assert error == "Invalid payload: must be a JSON object" or (payload is None and "payload" in error)


def test_unknown_fields_are_named(rest):
    assert "max_retrys" in refused(rest, max_retrys=3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("func", ""), ("func", "two words"), ("func", "a\nb"), ("func", "f" * 256), ("func", 3),
        ("channel", "two words"), ("channel", "c" * 101), ("channel", "ch/1"), ("channel", "@private"), ("channel", 3),
        ("delay", -1), ("delay", "soon"), ("delay", 1.5),
        ("run_at", "tomorrow"), ("run_at", 5),
        ("max_retries", -1), ("max_retries", "3"),
        ("expires_in", -5), ("expires_in", 0), ("expires_in", "x"),
        ("expires_at", "never"), ("expires_at", "2001-01-01T00:00:00Z"),
        ("broadcast", "yes"),
        ("max_exec_seconds", -1), ("max_exec_seconds", "x"),
        ("idempotency_key", "k" * 256), ("idempotency_key", 7),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_by_its_name(rest, field, value):
    assert field in refused(rest, **{field: value})


def test_the_longest_names_are_taken(rest, channel):
    job_id = rest.publish(channel.ljust(100, "c"), func="f" * 255, idempotency_key=channel.ljust(255, "k"))
    rest.act(job_id, cancel_request=True)


def test_what_is_left_out_has_its_default(rest):
    body = rest.ok("POST", "/api/jobs/publish", {"func": "f", "payload": {}})
    job = rest.job(body["job_id"])
    assert job["channel"] == "default"
    assert job["max_retries"] == 3
    assert job["broadcast"] is False
    assert job["priority"] == 0
    assert job["owner"] == "operator"
    assert job["max_exec_seconds"] is None
    assert abs(moment(job["expires_at"]) - moment(job["created"]) - 900) < 2
    rest.act(body["job_id"], cancel_request=True)


def test_the_payload_reaches_the_runner_as_it_was_spelt(rest, service, crew, channel):
    raw = '{"func": "f", "channel": "%s", "payload": %s}' % (channel, HUGE)
    answer = rest.call("POST", "/api/jobs/publish", raw=raw)
    assert answer.code == 200, answer.text
    assignment = crew.runner(service, channel).next_assignment(job_id=answer.body["job_id"])
    assert literally(assignment.job.payload_json) == literally(HUGE)
    shown = rest.get(f"/api/jobs/job/{answer.body['job_id']}").text
    payload = dict(dict(literally(shown))["data"])["payload"]
    assert payload == literally(HUGE)


def test_the_same_key_and_content_is_the_same_job(rest, channel):
    body = {"func": "f", "payload": {"a": 1}, "channel": channel, "idempotency_key": f"k-{channel}", "delay": 60}
    first = rest.ok("POST", "/api/jobs/publish", body)
    second = rest.ok("POST", "/api/jobs/publish", body)
    assert not first.get("deduplicated")
    assert second["deduplicated"] is True
    assert second["job_id"] == first["job_id"] == second["data"]["id"]


@pytest.mark.parametrize("change", [{"payload": {"a": 2}}, {"func": "g"}, {"max_retries": 0}])
def test_the_same_key_with_other_content_is_409(rest, channel, change):
    body = {"func": "f", "payload": {"a": 1}, "channel": channel, "idempotency_key": f"k-{channel}"}
    rest.ok("POST", "/api/jobs/publish", body)
    rest.refused(409, "POST", "/api/jobs/publish", {**body, **change})


def test_a_key_belongs_to_its_owner(rest, channel):
    fields = {"idempotency_key": f"k-{channel}", "delay": 60}
    alice, bob = rest.who("alice"), rest.who("bob")
    assert alice.publish(channel, **fields) != bob.publish(channel, **fields)


def test_twenty_at_once_make_one_job(rest, channel):
    body = {"func": "f", "payload": {"a": 1}, "channel": channel, "idempotency_key": f"k-{channel}"}
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: rest.ok("POST", "/api/jobs/publish", body), range(20)))
    assert len({answer["job_id"] for answer in answers}) == 1
    assert sum(not answer.get("deduplicated") for answer in answers) == 1
    assert rest.ok("GET", "/api/jobs/list", channel=channel)["count"] == 1


def test_run_at_wins_over_delay(rest, channel):
    at = time() + 500
    job = rest.job(rest.publish(channel, run_at=iso(at), delay=5))
    assert abs(moment(job["run_at"]) - at) < 1


def test_a_time_without_offset_is_utc_and_an_offset_is_heeded(rest, channel):
    at = time() + 500
    assert abs(moment(rest.job(rest.publish(channel, run_at=iso(at, "")))["run_at"]) - at) < 1
    assert abs(moment(rest.job(rest.publish(channel, run_at=iso(at + 7200, "+02:00")))["run_at"]) - at) < 1


def test_a_past_run_at_runs_at_once(rest, service, crew, channel):
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel, run_at="2001-01-01T00:00:00Z")
    assert runner.complete(runner.next_assignment(job_id=job_id))
    assert rest.status(job_id) == "completed"


def test_expires_at_wins_over_expires_in(rest, channel):
    at = time() + 300
    job = rest.job(rest.publish(channel, expires_at=iso(at), expires_in=5))
    assert abs(moment(job["expires_at"]) - at) < 1


def test_expires_in_counts_from_the_run_time(rest, channel):
    job = rest.job(rest.publish(channel, delay=60, expires_in=30))
    assert abs(moment(job["expires_at"]) - moment(job["run_at"]) - 30) < 1


def test_an_expiry_before_the_run_time_is_refused(rest):
    assert "expires_at" in refused(rest, delay=60, expires_at=iso(time() + 30))


def test_a_job_that_waited_past_its_expiry_expires_without_a_runner(rest, channel):
    job_id = rest.publish(channel, expires_in=1)
    eventually("the job expired", lambda: rest.status(job_id) == "expired", seconds=8)
    job = rest.job(job_id)
    assert job["is_terminal"] is True and job["is_retriable"] is True
    assert moment(job["finished_at"]) >= moment(job["expires_at"]) - 0.01
    assert rest.events(job_id)[-1]["event"] == "expired"


def test_a_delayed_job_runs_after_its_delay_and_never_before(rest, service, crew, channel):
    runner = crew.runner(service, channel)
    job_id = rest.publish(channel, delay=1)
    due = moment(rest.job(job_id)["run_at"])
    assignment = runner.next_assignment(job_id=job_id)
    assert time() >= due - 0.005, "early"
    assert time() <= due + 3, "late"
    assert runner.complete(assignment)


def test_a_key_is_kept_with_the_job(rest, channel):
    key = f"k-{channel}"
    assert rest.job(rest.publish(channel, idempotency_key=key))["idempotency_key"] == key
