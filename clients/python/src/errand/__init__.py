"""Publish jobs to Errand, and run them.

A publisher needs `Client` or `AsyncClient`; a runner is started with the command `errand-runner` or with `Runner`,
and executes functions that take a `RunningJob`. `errand.testing` runs such a function without a service.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .registry import job
from .running import Json, Permanent, Retry, RunningJob, current_job

if TYPE_CHECKING:
    from .aio import AsyncClient
    from .client import Client
    from .endpoint import Tls
    from .errors import (
        Busy,
        Conflict,
        DeadlineExceeded,
        Denied,
        ErrandError,
        Invalid,
        JobCanceled,
        JobEnded,
        JobExpired,
        JobFailed,
        NotFound,
        Refused,
        TooLarge,
        Unauthenticated,
        Unavailable,
    )
    from .operations import Filters
    from .records import (
        Cancellation,
        Change,
        Job,
        JobEvent,
        JobLog,
        JobStatus,
        Page,
        Published,
        Receipt,
        Report,
    )
    from .runner import Runner, RunnerError
    from .spec import JobSpec, Options

# A module of job functions needs none of these, and the processes that run them should not load gRPC for nothing.
_LAZY = {
    "AsyncClient": "aio",
    "Client": "client",
    "Tls": "endpoint",
    **dict.fromkeys(
        (
            "Busy",
            "Conflict",
            "DeadlineExceeded",
            "Denied",
            "ErrandError",
            "Invalid",
            "JobCanceled",
            "JobEnded",
            "JobExpired",
            "JobFailed",
            "NotFound",
            "Refused",
            "TooLarge",
            "Unauthenticated",
            "Unavailable",
        ),
        "errors",
    ),
    "Filters": "operations",
    **dict.fromkeys(
        (
            "Cancellation",
            "Change",
            "Job",
            "JobEvent",
            "JobLog",
            "JobStatus",
            "Page",
            "Published",
            "Receipt",
            "Report",
        ),
        "records",
    ),
    "Runner": "runner",
    "RunnerError": "runner",
    "JobSpec": "spec",
    "Options": "spec",
}

__all__ = [
    "AsyncClient",
    "Busy",
    "Cancellation",
    "Change",
    "Client",
    "Conflict",
    "DeadlineExceeded",
    "Denied",
    "ErrandError",
    "Filters",
    "Invalid",
    "Job",
    "JobCanceled",
    "JobEnded",
    "JobEvent",
    "JobExpired",
    "JobFailed",
    "JobLog",
    "JobSpec",
    "JobStatus",
    "Json",
    "NotFound",
    "Options",
    "Page",
    "Permanent",
    "Published",
    "Receipt",
    "Refused",
    "Report",
    "Retry",
    "Runner",
    "RunnerError",
    "RunningJob",
    "Tls",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "current_job",
    "job",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value
