"""What can go wrong in a call, by what the caller can do about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from .records import Job


class ErrandError(Exception):
    """Something that the service refused or could not do; the text is the service's own sentence."""

    def __init__(self, message: str, *, reason: str = "", field: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        """For programs, e.g. `JOB_NOT_FOUND`; empty where the service gave none."""
        self.field = field
        """The field at fault; empty where it is about none."""


class Unauthenticated(ErrandError):
    """The token is missing, invalid or expired."""


class Denied(ErrandError):
    """The token does not allow it."""


class NotFound(ErrandError):
    """There is no such job or runner, or it is not the caller's to see."""


class Invalid(ErrandError):
    """A field is wrong: the same request will be refused again."""


class TooLarge(Invalid):
    """A field, most often the payload, is over the limit."""


class Refused(ErrandError):
    """The job is in no state for it, e.g. completed and asked to be canceled."""


class Conflict(ErrandError):
    """The idempotency key was used for a job with other content."""


class Busy(ErrandError):
    """The service has too much to do at the moment: try again later."""


class Unavailable(ErrandError):
    """No server could be reached, or it is shutting down: try again."""


class DeadlineExceeded(ErrandError, TimeoutError):
    """It took longer than the timeout that was given."""


class JobEnded(ErrandError):
    """A job whose result was wanted ended without one."""

    def __init__(self, job: Job) -> None:
        why = f": {job.last_error}" if job.last_error else ""
        super().__init__(f"job {job.id} {job.status.value}{why}")
        self.job = job


class JobFailed(JobEnded):
    """It failed; `job.last_error` and `job.stack_trace` say why."""


class JobCanceled(JobEnded):
    """Somebody canceled it."""


class JobExpired(JobEnded):
    """No runner took it before its expiry."""


_CLASSES: dict[grpc.StatusCode, type[ErrandError]] = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: Denied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.INVALID_ARGUMENT: Invalid,
    grpc.StatusCode.OUT_OF_RANGE: Invalid,
    grpc.StatusCode.FAILED_PRECONDITION: Refused,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Busy,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}
_DETAILS_KEY = "grpc-status-details-bin"


def from_rpc(error: Any) -> ErrandError:
    """The error of a call, sync or asyncio, as one of the above."""
    info = _error_info(error.trailing_metadata() or ())
    kind = _CLASSES.get(error.code(), ErrandError)
    if info.reason in ("PAYLOAD_TOO_LARGE", "TOO_LARGE"):
        kind = TooLarge
    return kind(error.details() or error.code().name, reason=info.reason, field=info.metadata.get("field", ""))


def _error_info(trailers: Iterable[tuple[str, Any]]) -> Any:
    info = error_details_pb2.ErrorInfo()
    for key, value in trailers:
        if key == _DETAILS_KEY:
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(info):
                    return info
    return info
