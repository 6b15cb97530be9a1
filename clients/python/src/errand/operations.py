"""Every call of a publisher or operator, once for the sync client and the asyncio one.

An operation is a request and what to make of the answer. It does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from . import records, text
from .errors import JobCanceled, JobExpired, JobFailed
from .records import Job, JobStatus
from .spec import JobSpec, Seconds, _seconds, spec_to_wire
from .v1 import jobs_pb2

Answer = TypeVar("Answer")

BATCH_MAX = 1000
"""Jobs in one batch, unless the service was told otherwise."""
PAGE_MAX = 1000


@dataclass(frozen=True)
class Operation(Generic[Answer]):
    """One call."""

    path: str
    request: Any
    response: Any
    """The class of the answer's message."""
    read: Callable[[Any], Answer]
    """From the answer's message to a record."""
    repeatable: bool = True
    """Whether a second call does no harm where nobody knows what became of the first."""


def _operation(name: str, request: Any, read: Callable[[Any], Answer], *, repeatable: bool = True) -> Operation[Answer]:
    response = getattr(jobs_pb2, f"{name}Response")
    return Operation(f"/errand.v1.Jobs/{name}", request, response, read, repeatable)


def publish(spec: JobSpec) -> Operation[records.Published]:
    """Stores one job."""

    def read(answer: jobs_pb2.PublishJobResponse) -> records.Published:
        return records.Published(answer.job.id, answer.deduplicated, records.job_from_wire(answer.job))

    request = jobs_pb2.PublishJobRequest(spec=spec.to_wire())
    return _operation("PublishJob", request, read, repeatable=bool(spec.idempotency_key))


def publish_batch(specs: Iterable[JobSpec]) -> Operation[list[records.Receipt]]:
    """Stores jobs: all of them, or none."""

    def read(answer: jobs_pb2.PublishJobsResponse) -> list[records.Receipt]:
        return [records.Receipt(receipt.job_id, receipt.deduplicated) for receipt in answer.receipts]

    specs = list(specs)
    request = jobs_pb2.PublishJobsRequest(specs=[spec.to_wire() for spec in specs])
    return _operation("PublishJobs", request, read, repeatable=all(spec.idempotency_key for spec in specs))


def clone(template_id: str, func: str, payload: dict[str, Any] | None, options: JobSpec) -> Operation[str]:
    """Stores a new job from an old one."""
    payload_json = "" if payload is None else text.object_to_json("payload", payload)
    overrides = spec_to_wire(func, payload_json, options)
    request = jobs_pb2.CloneJobRequest(template_job_id=template_id, overrides=overrides)
    return _operation("CloneJob", request, lambda answer: str(answer.job_id), repeatable=bool(options.idempotency_key))


def get(job_id: str) -> Operation[Job]:
    """Reads one job."""
    request = jobs_pb2.GetJobRequest(job_id=job_id)
    return _operation("GetJob", request, lambda answer: records.job_from_wire(answer.job))


def status(job_id: str) -> Operation[records.Report]:
    """Reads a job with its latest events and its place in the queue."""

    def read(answer: jobs_pb2.GetJobStatusResponse) -> records.Report:
        return records.Report(
            records.job_from_wire(answer.job),
            [records.event_from_wire(event) for event in answer.recent_events],
            answer.queue_position if answer.HasField("queue_position") else None,
        )

    return _operation("GetJobStatus", jobs_pb2.GetJobStatusRequest(job_id=job_id), read)


@dataclass(frozen=True)
class Filters:
    """Which jobs a list has, in which order. All filters given must match."""

    channel: str = ""
    status: JobStatus | str | Sequence[JobStatus | str] = ()
    func: str = ""
    runner_id: str = ""
    created_from: datetime | None = None
    created_to: datetime | None = None
    parent_id: str = ""
    """The parts of one broadcast job; lists leave parts out otherwise."""
    search: str = ""
    """A prefix of the id or of the function's name."""
    broadcast: bool | None = None
    order: str = ""
    """`created`, `modified`, `started_at`, `finished_at` or `run_at`, with `-` before it for the latest first;
    `-created` where it is empty."""


def list_jobs(filters: Filters, limit: int, page_token: str, *, count: bool) -> Operation[records.Page]:
    """Reads one page of a list."""

    def read(answer: jobs_pb2.ListJobsResponse) -> records.Page:
        jobs = [records.job_from_wire(job) for job in answer.jobs]
        total = answer.total if answer.HasField("total") else None
        return records.Page(jobs, answer.next_page_token, total, answer.total_is_estimate)

    statuses = [filters.status] if isinstance(filters.status, str) else filters.status
    request = jobs_pb2.ListJobsRequest(
        channel=filters.channel,
        statuses=[records.status_to_wire(status) for status in statuses],
        func=filters.func,
        runner_id=filters.runner_id,
        parent_id=filters.parent_id,
        search=filters.search,
        order=_order(filters.order),
        page_size=limit,
        page_token=page_token,
        count=count,
    )
    if filters.broadcast is not None:
        request.broadcast = filters.broadcast
    if filters.created_from is not None:
        request.created_from.CopyFrom(records.time_to_wire(filters.created_from))
    if filters.created_to is not None:
        request.created_to.CopyFrom(records.time_to_wire(filters.created_to))
    return _operation("ListJobs", request, read)


def _order(order: str) -> Any:
    if not order:
        return jobs_pb2.LIST_ORDER_UNSPECIFIED
    field, suffix = (order[1:], "_DESC") if order.startswith("-") else (order, "")
    try:
        return jobs_pb2.ListOrder.Value(f"LIST_ORDER_{field.upper()}{suffix}")
    except ValueError:
        raise ValueError(f"a list cannot be ordered by {order!r}") from None


def events(job_id: str) -> Operation[list[records.JobEvent]]:
    """Reads a job's history, oldest first."""
    request = jobs_pb2.ListJobEventsRequest(job_id=job_id)
    return _operation(
        "ListJobEvents", request, lambda answer: [records.event_from_wire(event) for event in answer.events]
    )


def logs(job_id: str, kinds: Sequence[str], page_token: str) -> Operation[tuple[list[records.JobLog], str]]:
    """Reads a page of the lines that a job's function wrote, and the token of the page that follows."""

    def read(answer: jobs_pb2.ListJobLogsResponse) -> tuple[list[records.JobLog], str]:
        return [records.log_from_wire(line) for line in answer.logs], answer.next_page_token

    request = jobs_pb2.ListJobLogsRequest(
        job_id=job_id,
        kinds=[f"LOG_KIND_{kind.upper()}" for kind in kinds],
        page_size=PAGE_MAX,
        page_token=page_token,
    )
    return _operation("ListJobLogs", request, read)


def watch(job_id: str, channel: str) -> Operation[records.Change]:
    """Follows events as they happen; the answer is a stream of changes."""

    def read(answer: jobs_pb2.WatchJobsResponse) -> records.Change:
        return records.Change(records.event_from_wire(answer.event), records.job_from_wire(answer.job))

    return _operation("WatchJobs", jobs_pb2.WatchJobsRequest(job_id=job_id, channel=channel), read)


def cancel(job_id: str) -> Operation[records.Cancellation]:
    """Cancels a pending job, asks the runner of a running one to stop."""

    def read(answer: jobs_pb2.CancelJobResponse) -> records.Cancellation:
        return records.Cancellation(records.job_from_wire(answer.job), answer.forced)

    return _operation("CancelJob", jobs_pb2.CancelJobRequest(job_id=job_id), read, repeatable=False)


def retry(job_id: str, delay: Seconds | None) -> Operation[str]:
    """Publishes a job that ended anew."""
    request = jobs_pb2.RetryJobRequest(job_id=job_id, delay_seconds=_seconds("delay", delay))
    return _operation("RetryJob", request, lambda answer: str(answer.new_job_id), repeatable=False)


def delete(job_id: str) -> Operation[None]:
    """Removes a job with its events and logs."""
    return _operation("DeleteJob", jobs_pb2.DeleteJobRequest(job_id=job_id), lambda _: None, repeatable=False)


def result_of(job: Job) -> Any:
    """What the function of a job that has ended returned, or the error that says why there is nothing."""
    if job.status is JobStatus.COMPLETED:
        return job.result
    kinds = {JobStatus.FAILED: JobFailed, JobStatus.CANCELED: JobCanceled, JobStatus.EXPIRED: JobExpired}
    raise kinds[job.status](job)
