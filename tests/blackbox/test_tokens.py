"""Which tokens are believed."""

import base64
import json
import time

import grpc
import jwt
import pytest

from rest import Rest
from service import errand
from wire import Grpc

SECRET = "a-secret-of-more-than-thirty-two-bytes-for-tests"


@pytest.fixture
def secured(crew, tmp_path):
    """A service whose secret the test knows."""
    file = tmp_path / "secret"
    file.write_text(SECRET)
    file.chmod(0o600)
    return crew.service("--auth-secret-file", str(file))


def claims(**changed):
    base = {"sub": "alice", "exp": int(time.time()) + 3600, "permissions": ["manage_jobs"]}
    return {key: value for key, value in {**base, **changed}.items() if value is not None}


def sign(secret=SECRET, algorithm="HS256", **changed):
    return jwt.encode(claims(**changed), secret, algorithm=algorithm)


def unsigned():
    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims())}."


def tampered():
    header, _, signature = sign(permissions=[]).split(".")
    return ".".join((header, sign().split(".")[1], signature))


def refuses(service, token, sentence):
    rest = Rest(service, f"http://{service.http}", token)
    assert rest.refused(401, "GET", "/api/jobs/list") == sentence
    with pytest.raises(grpc.RpcError) as refusal:
        Grpc(service.grpc_address, token).publish()
    assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_only_a_good_signature_is_believed(secured):
    Rest(secured, f"http://{secured.http}", sign()).ok("GET", "/api/jobs/stats")
    refuses(secured, sign(secret="another-secret-of-more-than-thirty-two-bytes"), "Invalid token")
    refuses(secured, unsigned(), "Invalid token")
    refuses(secured, tampered(), "Invalid token")
    refuses(secured, sign(algorithm="HS512"), "Invalid token")
    refuses(secured, sign(exp=int(time.time()) - 3600), "Token expired")


def test_a_token_names_its_subject_and_its_end(secured):
    refuses(secured, sign(sub=None), "Invalid token")
    refuses(secured, sign(exp=None), "Invalid token")


def test_a_token_without_permissions_may_publish(secured):
    for permissions in ([], None):
        rest = Rest(secured, f"http://{secured.http}", sign(permissions=permissions))
        job_id = rest.publish("default")
        assert rest.job(job_id)["owner"] == "alice"
        rest.refused(403, "GET", "/api/jobs/stats")


def test_permissions_do_not_spill_over(service):
    rest = service.rest("viewer", "view_jobs")
    rest.ok("GET", "/api/jobs/stats")
    job_id = rest.publish("tokens")
    rest.refused(403, "POST", f"/api/jobs/job/{job_id}", {"cancel_request": True})
    service.rest("manager", "manage_jobs").ok("GET", "/api/jobs/stats")


def test_a_minted_token_bears_what_was_asked_for(service):
    token = service.token("me", "run_jobs", "view_jobs", channels=("a", "b"), expires_in="1h")
    said = jwt.decode(token, options={"verify_signature": False})
    assert said["sub"] == "me"
    assert sorted(said["permissions"]) == ["run_jobs", "view_jobs"]
    assert said["channels"] == ["a", "b"]
    assert abs(said["exp"] - time.time() - 3600) < 120


def test_an_unknown_permission_is_refused_when_minting(service):
    done = errand("token", "--data-dir", str(service.data_dir), "--subject", "me", "--permission", "rule_the_world")
    assert done.returncode == 64
    assert "rule_the_world" in done.stderr


def test_a_token_of_another_service_is_foreign(service, crew):
    other = crew.service()
    refuses(other, service.token("operator", "manage_jobs"), "Invalid token")
