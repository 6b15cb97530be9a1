"""What the service says of jobs, as plain records."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from . import text
from .v1 import job_pb2


class JobStatus(str, Enum):
    """Where a job stands. The four last are its ends."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"
    UNKNOWN = "unknown"
    """Something that a later service knows."""

    @property
    def is_terminal(self) -> bool:
        """Whether a job in this state will never change it."""
        return self in _TERMINAL


_TERMINAL = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELED, JobStatus.EXPIRED})


@dataclass(frozen=True)
class Job:
    """A job as it stood when the service answered."""

    id: str
    channel: str
    func: str
    payload: dict[str, Any]
    status: JobStatus
    run_at: datetime | None
    expires_at: datetime | None
    attempt: int
    """Executions started so far."""
    max_retries: int
    backoff_base: float
    backoff_max_seconds: int
    broadcast: bool
    cancel_requested: bool
    max_exec_seconds: int | None
    runner_id: str
    last_error: str
    stack_trace: str
    metadata: dict[str, Any]
    result: Any
    """What the function returned; None until it has."""
    idempotency_key: str
    owner: str
    priority: int
    created: datetime | None
    modified: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    traceparent: str
    parent_id: str
    """The broadcast job that this one is a part of; empty for all others."""

    @property
    def is_terminal(self) -> bool:
        """Whether it has ended."""
        return self.status.is_terminal


@dataclass(frozen=True)
class JobEvent:
    """One line of a job's history."""

    seq: int
    job_id: str
    channel: str
    kind: str
    """`created`, `queued`, `scheduled`, `claimed`, `running`, `completed`, `failed`, `retry`, `canceled`, ..."""
    at: datetime | None
    runner_id: str
    attempt: int
    details: dict[str, Any]


@dataclass(frozen=True)
class JobLog:
    """A line that a job function wrote."""

    id: int
    job_id: str
    channel: str
    created: datetime | None
    kind: str
    message: str
    meta: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """A job with its latest events and its place in the queue."""

    job: Job
    recent_events: list[JobEvent]
    """The latest ten, oldest first."""
    queue_position: int | None
    """1 is next; None unless the job is pending."""


@dataclass(frozen=True)
class Page:
    """Some of the jobs that a list has."""

    jobs: list[Job]
    next_page_token: str
    """For the page that follows; empty on the last one."""
    total: int | None
    """How many match, where that was asked for."""
    total_is_estimate: bool = False
    """Whether there may be more than `total`; never up to 10,000."""


@dataclass(frozen=True)
class Receipt:
    """A job is stored, and will be run."""

    id: str
    deduplicated: bool
    """Whether the idempotency key named a job that was there before."""


@dataclass(frozen=True)
class Published(Receipt):
    """Likewise, with the job itself."""

    job: Job


@dataclass(frozen=True)
class Cancellation:
    """A cancellation was asked for."""

    job: Job
    forced: bool
    """Whether the job was running on a runner that is gone, and was canceled without it."""


@dataclass(frozen=True)
class Change:
    """An event as it happens, and the job after it."""

    event: JobEvent
    job: Job


def job_from_wire(wire: job_pb2.Job) -> Job:
    """A job as the contract spells it."""
    return Job(
        id=wire.id,
        channel=wire.channel,
        func=wire.func,
        payload=_object(wire.payload_json),
        status=_status(wire.status),
        run_at=_time(wire, "run_at"),
        expires_at=_time(wire, "expires_at"),
        attempt=wire.attempt,
        max_retries=wire.max_retries,
        backoff_base=wire.backoff_base,
        backoff_max_seconds=wire.backoff_max_seconds,
        broadcast=wire.broadcast,
        cancel_requested=wire.cancel_requested,
        max_exec_seconds=wire.max_exec_seconds if wire.HasField("max_exec_seconds") else None,
        runner_id=wire.runner_id,
        last_error=wire.last_error,
        stack_trace=wire.stack_trace,
        metadata=_object(wire.metadata_json),
        result=text.parse(wire.result_json) if wire.result_json else None,
        idempotency_key=wire.idempotency_key,
        owner=wire.owner,
        priority=wire.priority,
        created=_time(wire, "created"),
        modified=_time(wire, "modified"),
        started_at=_time(wire, "started_at"),
        finished_at=_time(wire, "finished_at"),
        traceparent=wire.traceparent,
        parent_id=wire.parent_id,
    )


def event_from_wire(wire: job_pb2.JobEvent) -> JobEvent:
    """An event as the contract spells it."""
    return JobEvent(
        seq=wire.seq,
        job_id=wire.job_id,
        channel=wire.channel,
        kind=_name(job_pb2.JobEventKind, wire.kind, "JOB_EVENT_KIND_"),
        at=_time(wire, "at"),
        runner_id=wire.runner_id,
        attempt=wire.attempt,
        details=_object(wire.details_json),
    )


def log_from_wire(wire: job_pb2.JobLog) -> JobLog:
    """A log line as the contract spells it."""
    return JobLog(
        id=wire.id,
        job_id=wire.job_id,
        channel=wire.channel,
        created=_time(wire, "created"),
        kind=_name(job_pb2.LogKind, wire.kind, "LOG_KIND_"),
        message=wire.message,
        meta=_object(wire.meta_json),
    )


def status_to_wire(status: JobStatus | str) -> Any:
    """A status as the contract spells it; `ValueError` where there is no such status."""
    return job_pb2.JobStatus.Value(f"JOB_STATUS_{JobStatus(status).value.upper()}")


def time_to_wire(moment: datetime) -> Timestamp:
    """A moment; one without a time zone is UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    wire = Timestamp()
    wire.FromDatetime(moment)
    return wire


def _status(number: int) -> JobStatus:
    try:
        return JobStatus(_name(job_pb2.JobStatus, number, "JOB_STATUS_"))
    except ValueError:
        return JobStatus.UNKNOWN


def _name(enum: Any, number: int, prefix: str) -> str:
    try:
        name: str = enum.Name(number)
    except ValueError:
        # Of a later service.
        return "unknown"
    return name.removeprefix(prefix).lower()


def _time(wire: Any, field: str) -> datetime | None:
    if not wire.HasField(field):
        return None
    stamp: Timestamp = getattr(wire, field)
    return stamp.ToDatetime(timezone.utc)


def _object(json: str) -> dict[str, Any]:
    return text.parse(json) if json else {}
