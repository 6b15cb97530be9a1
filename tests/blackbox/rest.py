"""The REST API as a client sees it: a method, a path, an answer."""

import collections
import itertools
import json

import requests

Answer = collections.namedtuple("Answer", "code body headers text")

JSON = "application/json"


class Rest:
    def __init__(self, service, base, token=None):
        self.service = service
        self.base = base
        self.token = token

    def who(self, subject, *permissions):
        """The same gateway, seen by somebody else."""
        return Rest(self.service, self.base, self.service.token(subject, *permissions))

    def bearing(self, token):
        return Rest(self.service, self.base, token)

    def call(self, method, path, body=None, raw=None, params=None, headers=None):
        sent = {}
        if self.token is not None:
            sent["Authorization"] = f"Bearer {self.token}"
        data = raw
        if body is not None:
            data = json.dumps(body)
        if data is not None:
            sent["Content-Type"] = JSON
        sent.update(headers or {})
        if isinstance(data, str):
            data = data.encode()
        reply = requests.request(
            method, self.base + path, data=data, params=params, headers=sent, timeout=70, allow_redirects=False
        )
        assert reply.headers.get("Content-Type", "").startswith(JSON), (
            f"{method} {path} answered {reply.status_code} {reply.headers.get('Content-Type')!r}: {reply.text[:300]}"
        )
        body = reply.json()
        assert isinstance(body, dict) and isinstance(body.get("status"), bool), f"no envelope: {reply.text[:300]}"
        assert body["status"] == (reply.status_code < 400), f"{reply.status_code} with {reply.text[:300]}"
        return Answer(reply.status_code, body, reply.headers, reply.text)

    def jobs_of(self, channel):
        """All of its jobs, by id."""
        jobs = {}
        for start in itertools.count(0, 1000):
            page = self.ok("GET", "/api/jobs/job", channel=channel, size=1000, start=start, graph="status")["data"]
            jobs.update({job["id"]: job for job in page})
            if len(page) < 1000:
                return jobs

    def get(self, path, **params):
        return self.call("GET", path, params=params)

    def post(self, path, body=None, **more):
        return self.call("POST", path, body=body, **more)

    def ok(self, method, path, body=None, **params):
        """The body of a call that has to succeed."""
        answer = self.call(method, path, body=body, params=params)
        assert answer.code == 200, f"{method} {path}: {answer.code} {answer.text[:400]}"
        return answer.body

    def refused(self, code, method, path, body=None, **more):
        """The sentence of a call that has to be refused."""
        answer = self.call(method, path, body=body, **more)
        assert answer.code == code, f"{method} {path}: wanted {code}, got {answer.code} {answer.text[:400]}"
        assert set(answer.body) >= {"status", "error", "code"}, answer.text
        assert answer.body["code"] == code
        error = answer.body["error"]
        assert isinstance(error, str) and error and "\n" not in error, answer.text
        return error

    def publish(self, channel, func="tests.echo", payload=None, **fields):
        body = {"func": func, "payload": {} if payload is None else payload, "channel": channel, **fields}
        return self.ok("POST", "/api/jobs/publish", body)["job_id"]

    def job(self, job_id, **params):
        return self.ok("GET", f"/api/jobs/job/{job_id}", **params)["data"]

    def status(self, job_id):
        return self.job(job_id)["status"]

    def act(self, job_id, **action):
        return self.ok("POST", f"/api/jobs/job/{job_id}", action)

    def events(self, job_id):
        return self.ok("GET", f"/api/jobs/job/{job_id}/events")["data"]
