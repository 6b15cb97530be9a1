"""Runs a job function against a job, without a service.

```python
from errand import testing

def test_it_counts_what_it_sent():
    ended = testing.run(send_email, {"recipients": ["ann@example.com"]})
    assert ended.status == "completed"
    assert ended.metadata == {"emails_sent": 1}
```
"""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from . import text
from .invoke import invoke, invoke_coroutine
from .registry import Entry, Kind, name_of
from .running import Line, RunningJob


@dataclass(frozen=True)
class Log:
    """A line that the function wrote."""

    at: datetime
    kind: str
    message: str
    meta: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """What became of the job, as the service would hear it."""

    status: str
    """`completed`, `failed` or `canceled`."""
    result: Any = None
    """What came back, after a journey through JSON."""
    error: str = ""
    stack_trace: str = ""
    permanent: bool = False
    """Whether no retry would follow, whatever the job allows."""
    retry_after: float | None = None
    """The wait that the function chose, in seconds."""
    metadata: dict[str, Any] = field(default_factory=dict)
    logs: list[Log] = field(default_factory=list)


def run(
    function: Callable[[RunningJob], Any],
    payload: dict[str, Any] | None = None,
    *,
    metadata: dict[str, Any] | None = None,
    cancel_requested: bool = False,
    attempt: int = 1,
    max_retries: int = 3,
    channel: str = "default",
    deadline: datetime | None = None,
    traceparent: str = "",
) -> Ended:
    """Calls a function, or awaits it, with a job made of the arguments. What it raises is in the answer."""
    lines: list[Line] = []
    job = RunningJob(
        id=uuid.uuid4().hex,
        attempt=attempt,
        func=name_of(function),
        channel=channel,
        payload_json=text.object_to_json("payload", payload or {}),
        metadata_json=text.object_to_json("metadata", metadata or {}),
        deadline=deadline,
        max_retries=max_retries,
        traceparent=traceparent,
        write=lines.append,
    )
    if cancel_requested:
        job._request_cancel()
    if inspect.iscoroutinefunction(function):
        outcome = asyncio.run(invoke_coroutine(Entry(function, Kind.COROUTINE), job))
    else:
        outcome = invoke(Entry(function, Kind.THREAD), job)
    completed = outcome.kind == "completed"
    return Ended(
        status=outcome.kind,
        result=text.parse(outcome.said) if completed and outcome.said else None,
        error="" if completed else outcome.said,
        stack_trace=outcome.stack_trace,
        permanent=outcome.permanent,
        retry_after=outcome.retry_after,
        metadata=text.parse(text.object_to_json("job.metadata", job.metadata)),
        logs=[
            Log(datetime.fromtimestamp(line.at, timezone.utc), line.kind, line.message, text.parse(line.meta_json))
            for line in lines
        ],
    )
