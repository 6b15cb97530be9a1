"""A runner for the conformance kit on `protocol.py`: the functions, and how they are called."""

import asyncio
import collections
import functools
import json
import os
import threading
import time
import traceback
from pathlib import Path

import grpc
from errand.v1.job_pb2 import LogKind
from errand.v1.runners_pb2 import Canceled, Completed, Failed, LogLine, Result
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from protocol import Runner

RESULT_MAX_BYTES = 1024 * 1024


class Permanent(Exception):
    """Fails a job for good."""


class Retry(Exception):
    """Fails an attempt, and says after how many seconds the next one starts."""


class Job:
    """What a function gets."""

    def __init__(self, job, stop, progress):
        self.job, self.payload, self._stop, self._progress = job, json.loads(job.payload_json), stop, progress
        self.metadata, self.saw_cancel, self.started = None, False, time.monotonic()

    def wait_for_cancel(self, seconds):
        self.saw_cancel = self._stop.wait(seconds)

    def report(self, metadata):
        self.metadata = json.dumps(metadata)
        self._progress({"metadata_json": self.metadata})

    def log(self, message, kind="info", meta=None):
        at = Timestamp()
        at.GetCurrentTime()
        kind = LogKind.Value(f"LOG_KIND_{kind.upper()}")
        self._progress({"logs": [LogLine(at=at, kind=kind, message=message, meta_json=json.dumps(meta or {}))]})


class Json(str):
    """A result that is JSON text already."""


def execute(job, stop, progress, ended):
    """Gives a job's function a thread of its own."""
    soon = asyncio.get_running_loop().call_soon_threadsafe
    arguments = job, stop, functools.partial(soon, progress), functools.partial(soon, ended)
    threading.Thread(target=call, args=arguments, daemon=True).start()


def call(job, stop, progress, ended):
    """Calls it, and tells how it ended."""
    running = Job(job, stop, progress)
    result = Result()
    try:
        function = FUNCTIONS.get(job.func)
        if function is None:
            raise Permanent(f"this runner has no function {job.func!r}")
        value = function(running)
        text = value if isinstance(value, Json) else json.dumps(value)
        if len(text) > RESULT_MAX_BYTES:
            raise Permanent(f"the result must be at most {RESULT_MAX_BYTES} bytes of JSON")
        result.completed.CopyFrom(Completed(result_json=text))
        if running.saw_cancel:
            result.canceled.CopyFrom(Canceled())
    except Exception as error:
        permanent = isinstance(error, Permanent)
        result.failed.CopyFrom(Failed(error=str(error), stack_trace=traceback.format_exc(), permanent=permanent))
        if isinstance(error, Retry):
            result.failed.error = "not yet"
            result.failed.retry_after.CopyFrom(Duration(nanos=int(error.args[0] % 1 * 1e9), seconds=int(error.args[0])))
    if running.metadata is not None:
        result.metadata_json = running.metadata
    ended(result)


def describe(job):
    limit, elapsed = job.job.max_exec_seconds, time.monotonic() - job.started
    return {
        "job_id": job.job.id,
        "func": job.job.func,
        "channel": job.job.channel,
        "attempt": job.job.attempt,
        "max_retries": job.job.max_retries,
        "traceparent": job.job.traceparent or None,
        "deadline_ms": int((limit - elapsed) * 1000) if limit else None,
    }


def fail(job):
    raise Exception(job.payload["message"])


def fail_for_good(job):
    raise Permanent(job.payload["message"])


def retry_after(job):
    if job.job.attempt == 1:
        raise Retry(job.payload["seconds"])
    return {"attempt": job.job.attempt}


def sleep(job):
    time.sleep(job.payload["seconds"])
    return {"slept": job.payload["seconds"]}


def busy(job):
    end = time.monotonic() + job.payload["seconds"]
    while time.monotonic() < end:
        pass
    return {"busy": job.payload["seconds"]}


def wait_for_cancel(job):
    job.wait_for_cancel(job.payload["seconds"])
    return {"waited": job.payload["seconds"]}


def progress(job):
    for step in range(1, job.payload["steps"] + 1):
        job.report({"step": step, "of": job.payload["steps"]})
        time.sleep(job.payload["pause"])
    return {"steps": job.payload["steps"]}


def log(job):
    for line in job.payload["lines"]:
        job.log(line["message"], line["kind"], line["meta"])
    return {"lines": len(job.payload["lines"])}


def unicode(job):
    text = job.payload["text"]
    job.log(text)
    job.report({"text": text})
    return {"text": text, "code_points": len(text)}


def crash(job):
    if job.job.attempt <= job.payload["attempts"]:
        os._exit(70)
    return {"attempt": job.job.attempt}


counts, counting = collections.Counter(), threading.Lock()


def starts(job):
    with counting:
        counts[job.job.id] += 1
        count = counts[job.job.id]
    time.sleep(job.payload["seconds"])
    return {"starts": count}


def concurrency(job):
    with counting:
        counts["running"] += 1
        counts["peak"] = max(counts["peak"], counts["running"])
    time.sleep(job.payload["seconds"])
    with counting:
        counts["running"] -= 1
        return {"peak": counts["peak"]}


FUNCTIONS = {
    "echo": lambda job: Json(job.job.payload_json),
    "no_result": lambda job: None,
    "many": lambda job: {"index": job.payload["index"]},
    "big_result": lambda job: {"text": "x" * job.payload["bytes"]},
}
FUNCTIONS |= {function.__name__: function for function in (describe, fail, fail_for_good, retry_after, sleep, busy)}
FUNCTIONS |= {function.__name__: function for function in (wait_for_cancel, progress, log, unicode, crash)}
FUNCTIONS |= {function.__name__: function for function in (starts, concurrency)}


def credentials():
    """TLS as the environment says."""
    files = [os.environ.get(f"ERRAND_{name}") for name in ("TLS_CA", "CLIENT_TLS_KEY", "CLIENT_TLS_CERT")]
    return grpc.ssl_channel_credentials(*(Path(file).read_bytes() if file else None for file in files))


def main():
    servers = [server for server in os.environ["ERRAND_SERVER"].split(",") if server]
    channels, capacity = os.environ["ERRAND_CHANNELS"].split(","), int(os.environ["ERRAND_CAPACITY"])
    runner = Runner(execute, servers, os.environ["ERRAND_TOKEN"], channels, capacity, credentials())
    asyncio.run(runner.run())
    os._exit(0)  # Functions that were handed back may still run.


if __name__ == "__main__":
    main()
