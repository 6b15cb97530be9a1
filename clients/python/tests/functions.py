"""Job functions for the tests, each written as a user would write it."""

import asyncio
import ctypes
import os
import pathlib
import threading
import time
from subprocess import run  # noqa: F401 - what a module imports is not for jobs to call

import errand


def echo(job):
    return job.payload


def documented(job):
    """As the documented system would have it."""
    for sent, address in enumerate(job.payload["recipients"], 1):
        if job.cancel_requested:
            return "cancelled"
        job.add_log(f"sent to {address}", kind="info", meta={"address": address})
        job.metadata["emails_sent"] = sent
    return "completed"


def about(job):
    deadline = job.deadline.timestamp() if job.deadline else None
    return {
        "id": job.id,
        "func": job.func,
        "channel": job.channel,
        "attempt": job.attempt,
        "max_retries": job.max_retries,
        "deadline": deadline,
        "traceparent": job.traceparent,
        "current": errand.current_job() is job,
        "pid": os.getpid(),
        "thread": threading.current_thread().name,
    }


def fail(job):
    raise ValueError(f"broken by {job.payload.get('who', 'nobody')}")


def fail_for_good(job):
    raise errand.Permanent("no such customer")


def retry_later(job):
    if job.attempt == 1:
        raise errand.Retry("not yet", after=job.payload["after"])
    return job.attempt


def unspeakable(job):
    return object()


def until_canceled(job):
    job.metadata["started"] = True
    while not job.cancel_requested:
        time.sleep(0.01)
    return "ignored"


def deaf(job):
    """Hears of no cancellation."""
    job.metadata["started"] = True
    time.sleep(job.payload.get("seconds", 1))
    return "done anyway"


def keep_the_interpreter(job):
    """A C call that does not release the interpreter lock."""
    mark(job)
    ctypes.PyDLL(None).sleep(job.payload["seconds"])
    return "released"


def spin(job):
    """Never ends."""
    mark(job)
    while True:
        time.sleep(0.05)


def crash(job):
    os.kill(os.getpid(), 9)


def mark(job):
    """Leaves a file for each execution."""
    folder = pathlib.Path(job.payload["folder"])
    (folder / f"{job.id}-{job.attempt}").touch()


def until_told(job):
    """Ends when a file appears."""
    folder = pathlib.Path(job.payload["folder"])
    (folder / f"began-{job.id}-{job.attempt}").touch()
    while not (folder / "go").exists():
        if job.cancel_requested:
            return "canceled"
        time.sleep(0.01)
    return job.attempt


def chatter(job):
    for number in range(job.payload["lines"]):
        job.add_log(f"line {number}", kind="debug")


def progress(job):
    folder = pathlib.Path(job.payload["folder"])
    job.metadata["deep"] = {"step": 1}
    while not (folder / "go").exists():
        time.sleep(0.01)
    job.metadata["deep"]["step"] = 2
    return


def publish_another(job):
    with errand.Client(os.environ["ERRAND_SERVER"], os.environ["PUBLISHER_TOKEN"]) as client:
        return client.publish("functions.echo", {}, channel="nobody").id


@errand.job("named", process=False)
def named_function(job):
    return "by name"


@errand.job("in-a-process", process=True)
def in_a_process(job):
    return os.getpid()


@errand.job("busy", process=True)
def busy(job):
    end = time.monotonic() + job.payload["seconds"]
    while time.monotonic() < end:
        pass
    return os.getpid()


async def gather(job):
    await asyncio.sleep(job.payload["seconds"])
    return threading.current_thread().name


async def wait_for_ever(job):
    try:
        await asyncio.sleep(3600)
    finally:
        pathlib.Path(job.payload["folder"], "ended").touch()


def _private(job):
    return "never"
