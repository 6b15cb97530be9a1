"""Every answer is the one envelope, whatever went wrong."""

import json

import pytest

from rest import Rest
from service import Gateway, free_port

MEBIBYTE = 1024 * 1024


def test_no_token_is_401(rest):
    assert rest.bearing(None).refused(401, "GET", "/api/jobs/list") == "Authentication required"


def test_a_scheme_other_than_bearer_is_401(rest):
    rest.bearing(None).refused(401, "GET", "/api/jobs/list", headers={"Authorization": "Basic YTpi"})


def test_garbage_as_token_is_401(rest):
    assert rest.bearing("garbage").refused(401, "GET", "/api/jobs/list") == "Invalid token"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/jobs/runners/ping", {"runner_id": "r", "timeout": 0}),
        ("POST", "/api/jobs/runners/shutdown", {"runner_id": "r"}),
        ("POST", "/api/jobs/runners/broadcast", {"command": "status"}),
    ],
)
def test_runner_management_without_manage_jobs_is_403(rest, method, path, body):
    for who in (rest.who("plain", "run_jobs"), rest.who("viewer", "view_jobs")):
        assert who.refused(403, method, path, body) == "Permission denied: manage_jobs required"


@pytest.mark.parametrize("path", ["health", "health/emails", "stats", "runners"])
def test_operator_reads_without_view_jobs_are_403(rest, path):
    plain = rest.who("plain", "run_jobs")
    assert plain.refused(403, "GET", f"/api/jobs/{path}") == "Permission denied: view_jobs required"
    rest.who("viewer", "view_jobs").ok("GET", f"/api/jobs/{path}")


def test_an_unknown_job_is_404(rest):
    for job_id in ("0" * 32, "no-such-job", "a1b2c3d4e5f6789012345678901234567"):
        assert rest.refused(404, "GET", f"/api/jobs/job/{job_id}") == "Job not found"
        assert rest.refused(404, "GET", f"/api/jobs/job/{job_id}/events") == "Job not found"
        assert rest.refused(404, "POST", f"/api/jobs/job/{job_id}", {"get_status": True}) == "Job not found"
        assert rest.refused(404, "DELETE", f"/api/jobs/job/{job_id}") == "Job not found"


@pytest.mark.parametrize("path", ["/", "/nowhere", "/api/jobs/nothing/here", "/api/jobs/job/1/2/3"])
def test_an_unknown_path_is_404(rest, path):
    rest.refused(404, "GET", path)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/jobs/publish", "POST"),
        ("GET", "/api/jobs/publish", "POST"),
        ("POST", "/api/jobs/list", "GET"),
        ("POST", "/api/jobs/health", "GET"),
        ("GET", "/api/jobs/runners/ping", "POST"),
        ("POST", "/api/jobs/job/00000000000000000000000000000000/events", "GET"),
    ],
)
def test_a_wrong_method_is_405_and_says_what_is_allowed(rest, method, path, allowed):
    rest.refused(405, method, path)
    assert allowed in rest.call(method, path).headers["Allow"]


def test_a_wrong_content_type_is_415(rest):
    raw = '{"func":"f","payload":{}}'
    rest.refused(415, "POST", "/api/jobs/publish", raw=raw, headers={"Content-Type": "text/plain"})


def test_a_content_type_may_bear_a_charset(rest, channel):
    raw = '{"func":"f","payload":{},"channel":"%s"}' % channel
    declared = {"Content-Type": "application/json; charset=utf-8"}
    assert rest.call("POST", "/api/jobs/publish", raw=raw, headers=declared).code == 200


def test_a_payload_over_the_limit_is_413(rest, channel):
    body = {"func": "f", "payload": {"a": "x" * MEBIBYTE}, "channel": channel}
    assert rest.refused(413, "POST", "/api/jobs/publish", body) == f"Payload exceeds maximum size of {MEBIBYTE} bytes"


def test_a_payload_just_under_the_limit_is_taken(rest, channel):
    job_id = rest.publish(channel, payload={"a": "x" * (MEBIBYTE - 100)})
    assert len(rest.job(job_id)["payload"]["a"]) == MEBIBYTE - 100


def test_a_body_over_the_limit_is_413(rest):
    rest.refused(413, "POST", "/api/jobs/publish", {"func": "f", "payload": {"a": "x" * (16 * MEBIBYTE)}})


@pytest.mark.parametrize("raw", ["", "{", "nonsense", '{"func": "f", "payload": {}', "\x00"])
def test_malformed_json_is_400_in_our_own_words(rest, raw):
    error = rest.refused(400, "POST", "/api/jobs/publish", raw=raw)
    for word in ("column", "EOF", "expected", "serde"):
        assert word not in error, error


@pytest.mark.parametrize("body", [[], "text", 3, None, True])
def test_a_body_that_is_no_object_is_400(rest, body):
    rest.refused(400, "POST", "/api/jobs/publish", raw=json.dumps(body))


def test_a_get_and_a_delete_may_bear_a_content_type(rest, channel):
    job_id = rest.publish(channel)
    declared = {"Content-Type": "application/json"}
    assert rest.call("GET", "/api/jobs/list", headers=declared).code == 200
    assert rest.call("GET", f"/api/jobs/job/{job_id}", headers=declared).code == 200
    assert rest.call("DELETE", f"/api/jobs/job/{job_id}", headers=declared).code == 200


def test_a_trailing_slash_changes_nothing(rest, channel):
    job_id = rest.ok("POST", "/api/jobs/publish/", {"func": "f", "payload": {}, "channel": channel})["job_id"]
    assert rest.ok("GET", f"/api/jobs/job/{job_id}/")["data"]["id"] == job_id
    assert rest.ok("GET", f"/api/jobs/job/{job_id}/events/")["job_id"] == job_id
    assert [job["id"] for job in rest.ok("GET", "/api/jobs/list/", channel=channel)["data"]] == [job_id]
    rest.ok("GET", "/api/jobs/health/")


def test_unknown_query_parameters_are_ignored(rest, channel):
    job_id = rest.publish(channel)
    body = rest.ok("GET", "/api/jobs/list", channel=channel, _="1", nonsense="2")
    assert [job["id"] for job in body["data"]] == [job_id]


def test_a_gateway_without_its_core_answers_503(service, tmp_path):
    gateway = Gateway(tmp_path, f"127.0.0.1:{free_port()}")
    try:
        orphan = Rest(service, f"http://{gateway.address}", service.token("operator", "manage_jobs"))
        error = orphan.refused(503, "GET", "/api/jobs/list")
        assert "tcp" not in error.lower() and "os error" not in error
        orphan.refused(503, "POST", "/api/jobs/publish", {"func": "f", "payload": {}})
    finally:
        gateway.end()
