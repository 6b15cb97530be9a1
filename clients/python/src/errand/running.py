"""What a function sees of the job it executes, and how it says more than a return value can."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from . import text

LOG_KINDS = frozenset({"debug", "info", "warn", "error"})


class Permanent(Exception):
    """Raised by a function: the job fails for good, whatever retries are left."""


class Retry(Exception):
    """Raised by a function: the attempt fails, and the next one starts after `after`, a timedelta or seconds.

    Without `after` the job's own backoff decides. A job that has no retry left fails all the same.
    """

    def __init__(self, message: str = "to be retried", *, after: timedelta | float | None = None) -> None:
        super().__init__(message)
        seconds = after.total_seconds() if isinstance(after, timedelta) else after
        if seconds is not None and not 0 <= seconds < 100 * 365 * 86_400:
            raise ValueError(f"after must be from 0 seconds to 100 years, not {after!r}")
        self.after = seconds


class Json(str):
    """Text that is JSON already. A function that returns it has its digits, spaces and order of keys kept."""


class Outcome(NamedTuple):
    """How an execution ended. Plain values only: it crosses a process boundary as a tuple."""

    kind: str
    """`completed`, `failed` or `canceled`."""
    said: str = ""
    """The result as JSON, empty for null; or the error."""
    stack_trace: str = ""
    permanent: bool = False
    retry_after: float | None = None


class Line(NamedTuple):
    """A log line that a function wrote."""

    at: float
    kind: str
    message: str
    meta_json: str


class RunningJob:
    """One execution of a job: what a job function gets as its argument."""

    __slots__ = (
        "_canceling",
        "_metadata",
        "_metadata_json",
        "_saw_cancel",
        "_write",
        "attempt",
        "channel",
        "deadline",
        "func",
        "id",
        "max_retries",
        "payload",
        "payload_json",
        "traceparent",
    )

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 - the attribute's name
        attempt: int,
        func: str,
        channel: str,
        payload_json: str,
        metadata_json: str,
        deadline: datetime | None,
        max_retries: int,
        traceparent: str,
        write: Callable[[Line], None],
    ) -> None:
        """`ValueError` where the payload cannot be read."""
        self.id = id
        """32 hex digits; the same in every attempt, so an effect that must not happen twice is keyed by it."""
        self.attempt = attempt
        """1 for the first execution."""
        self.func = func
        self.channel = channel
        self.payload_json = payload_json
        """The payload as the publisher spelt it, with every digit of its numbers."""
        self.payload: Any = text.parse(payload_json)
        """The publisher's dict."""
        self.deadline = deadline
        """When the attempt will be failed; None without a time limit."""
        self.max_retries = max_retries
        self.traceparent = traceparent
        """The publisher's W3C trace context; empty without one."""
        self._write = write
        self._canceling = False
        self._saw_cancel = False
        self._metadata: dict[str, Any] | None = None
        self._metadata_json = metadata_json

    @property
    def metadata(self) -> dict[str, Any]:
        """What the function reports of itself: a dict to change at will. What it holds is reported while it runs."""
        if self._metadata is None:
            self._metadata = text.parse(self._metadata_json) if self._metadata_json else {}
        return self._metadata

    @metadata.setter
    def metadata(self, value: dict[str, Any]) -> None:
        self._metadata = value

    @property
    def cancel_requested(self) -> bool:
        """Whether the job should stop. A function that saw it and returns has its job end as canceled."""
        if self._canceling:
            self._saw_cancel = True
        return self._canceling

    def add_log(self, message: object, kind: str = "info", meta: dict[str, Any] | None = None) -> None:
        """Adds a line to the job's log; `kind` is `debug`, `info`, `warn` or `error`, and anything else is `info`."""
        kind = "warn" if kind == "warning" else kind
        kind = kind if kind in LOG_KINDS else "info"
        meta_json = text.object_to_json("meta", meta) if meta else "{}"
        if len(meta_json) * 4 > text.LOG_META_MAX_BYTES and len(meta_json.encode()) > text.LOG_META_MAX_BYTES:
            raise ValueError(f"meta must be at most {text.LOG_META_MAX_BYTES} bytes of JSON")
        self._write(Line(time.time(), kind, text.cut(str(message), text.LOG_MESSAGE_MAX_BYTES), meta_json))

    def __repr__(self) -> str:
        return f"<RunningJob {self.id} {self.func} attempt {self.attempt}>"

    def _request_cancel(self) -> None:
        self._canceling = True

    def _changed_metadata(self) -> str | None:
        """The metadata as JSON if it is not what was reported last; it then counts as reported.

        `TypeError` or `ValueError` where it is no JSON object or too large.
        """
        if self._metadata is None:
            return None
        if not self._metadata and self._metadata_json in ("", "{}"):
            return None
        written = text.object_to_json("job.metadata", self._metadata)
        if written == self._metadata_json:
            return None
        if len(written.encode()) > text.METADATA_MAX_BYTES:
            raise ValueError(f"job.metadata must be at most {text.METADATA_MAX_BYTES} bytes of JSON")
        self._metadata_json = written
        return written


_current: ContextVar[RunningJob | None] = ContextVar("errand_current_job", default=None)


def current_job() -> RunningJob | None:
    """The job whose function is running here; None outside of one."""
    return _current.get()
