"""The runner under test of `errand conformance`: its functions are tabled in `docs/writing-a-client.md`."""

from __future__ import annotations

import collections
import os
import signal
import sys
import threading
import time
from typing import Any

import errand


def main() -> int:
    """Takes its settings from the environment."""
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(70))
    try:
        channels = [channel for channel in os.environ["ERRAND_CHANNELS"].split(",") if channel]
        errand.Runner(["__main__"], channels=channels, capacity=int(os.environ["ERRAND_CAPACITY"])).run()
    except (errand.RunnerError, ValueError) as error:
        print(f"conformance runner: {error}", file=sys.stderr)
        return 1
    # As `errand-runner` does: a signal while the interpreter ends is too late to mean anything.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return 0


@errand.job("echo")
def echo(job: errand.RunningJob) -> errand.Json:
    """The text rather than the value, for Python's floats would lose digits."""
    return errand.Json(job.payload_json)


@errand.job("no_result")
def no_result(job: errand.RunningJob) -> None:
    """Nothing."""


@errand.job("many")
def many(job: errand.RunningJob) -> dict[str, Any]:
    """The index."""
    return {"index": job.payload["index"]}


@errand.job("describe")
def describe(job: errand.RunningJob) -> dict[str, Any]:
    """What the function can know of its job."""
    return {
        "job_id": job.id,
        "func": job.func,
        "channel": job.channel,
        "attempt": job.attempt,
        "max_retries": job.max_retries,
        "traceparent": job.traceparent or None,
        "deadline_ms": int((job.deadline.timestamp() - time.time()) * 1000) if job.deadline else None,
    }


@errand.job("fail")
def fail(job: errand.RunningJob) -> None:
    """As any function would."""
    raise Exception(job.payload["message"])


@errand.job("fail_for_good")
def fail_for_good(job: errand.RunningJob) -> None:
    """Permanently."""
    raise errand.Permanent(job.payload["message"])


@errand.job("retry_after")
def retry_after(job: errand.RunningJob) -> dict[str, int]:
    """At the time that the payload says."""
    if job.attempt == 1:
        raise errand.Retry("not yet", after=job.payload["seconds"])
    return {"attempt": job.attempt}


@errand.job("sleep")
def sleep(job: errand.RunningJob) -> dict[str, float]:
    """Never looks at the cancel request."""
    time.sleep(job.payload["seconds"])
    return {"slept": job.payload["seconds"]}


@errand.job("busy", process=True)
def busy(job: errand.RunningJob) -> dict[str, float]:
    """Gives way to nobody."""
    end = time.monotonic() + job.payload["seconds"]
    while time.monotonic() < end:
        pass
    return {"busy": job.payload["seconds"]}


@errand.job("wait_for_cancel")
def wait_for_cancel(job: errand.RunningJob) -> dict[str, float]:
    """Returns early when it comes."""
    end = time.monotonic() + job.payload["seconds"]
    while time.monotonic() < end and not job.cancel_requested:
        time.sleep(0.01)
    return {"waited": job.payload["seconds"]}


@errand.job("progress")
def progress(job: errand.RunningJob) -> dict[str, int]:
    """Metadata at each step."""
    steps = job.payload["steps"]
    for step in range(1, steps + 1):
        job.metadata.update(step=step, of=steps)
        time.sleep(job.payload["pause"])
    return {"steps": steps}


@errand.job("log")
def log(job: errand.RunningJob) -> dict[str, int]:
    """Each line, in order."""
    for line in job.payload["lines"]:
        job.add_log(line["message"], line["kind"], line["meta"])
    return {"lines": len(job.payload["lines"])}


@errand.job("big_result")
def big_result(job: errand.RunningJob) -> dict[str, str]:
    """The letter x, that many times."""
    return {"text": "x" * job.payload["bytes"]}


@errand.job("unicode")
def unicode(job: errand.RunningJob) -> dict[str, Any]:
    """The same text by every way there is."""
    text = job.payload["text"]
    job.add_log(text)
    job.metadata["text"] = text
    return {"text": text, "code_points": len(text)}


@errand.job("crash")
def crash(job: errand.RunningJob) -> dict[str, int]:
    """Ends the supervisor: the end of a process that runs functions would only fail the job."""
    if job.attempt <= job.payload["attempts"]:
        os.kill(os.getppid(), signal.SIGUSR1)
        time.sleep(60)
    return {"attempt": job.attempt}


_starts: collections.Counter[str] = collections.Counter()
_running = 0
_peak = 0
_counting = threading.Lock()


@errand.job("starts")
def starts(job: errand.RunningJob) -> dict[str, int]:
    """How often it started for this job."""
    with _counting:
        _starts[job.id] += 1
        count = _starts[job.id]
    time.sleep(job.payload["seconds"])
    return {"starts": count}


@errand.job("concurrency")
def concurrency(job: errand.RunningJob) -> dict[str, int]:
    """How many ran at once."""
    global _running, _peak
    with _counting:
        _running += 1
        _peak = max(_peak, _running)
    time.sleep(job.payload["seconds"])
    with _counting:
        _running -= 1
        return {"peak": _peak}


if __name__ == "__main__":
    sys.exit(main())
