"""One call of a job function, and what its end means for the job."""

from __future__ import annotations

import traceback
from typing import Any

from . import text
from .registry import Entry
from .running import Json, Outcome, Permanent, Retry, RunningJob, _current

CANCELED = Outcome("canceled")
_COMPLETED_NULL = Outcome("completed")


def invoke(entry: Entry, job: RunningJob) -> Outcome:
    """Calls a plain function. Whatever it raises is its failure: nothing leaves here but an outcome."""
    _current.set(job)
    try:
        value = entry.function(job)
    except BaseException as error:
        return failed(error)
    finally:
        _current.set(None)
    return returned(job, value)


async def invoke_coroutine(entry: Entry, job: RunningJob) -> Outcome:
    """Awaits a coroutine function, likewise."""
    _current.set(job)
    try:
        value = await entry.function(job)
    except BaseException as error:
        return failed(error)
    return returned(job, value)


def returned(job: RunningJob, value: Any) -> Outcome:
    """A function came back."""
    if job._saw_cancel:
        return CANCELED
    if value is None:
        return _COMPLETED_NULL
    try:
        result = checked(value) if isinstance(value, Json) else text.to_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        # It did its work; to do it again would not make the value any better.
        return Outcome("failed", f"the result cannot be written as JSON: {error}", permanent=True)
    if len(result) > text.RESULT_MAX_BYTES or len(result.encode()) > text.RESULT_MAX_BYTES:
        return Outcome("failed", f"the result must be at most {text.RESULT_MAX_BYTES} bytes of JSON", permanent=True)
    return Outcome("completed", result)


def checked(value: Json) -> str:
    """Text that says to be JSON, and is."""
    text.parse(value)
    return str(value)


def failed(error: BaseException) -> Outcome:
    """A function raised. The class of an error that says nothing by its class is left out."""
    plain = type(error) is Exception or isinstance(error, Permanent | Retry)
    said = str(error) if plain else "".join(traceback.format_exception_only(error))
    return Outcome(
        "failed",
        text.cut(said.strip() or type(error).__name__, text.ERROR_MAX_BYTES),
        _stack_trace(error),
        isinstance(error, Permanent),
        error.after if isinstance(error, Retry) else None,
    )


def _stack_trace(error: BaseException) -> str:
    """The traceback from the function on; of one that is too long, its end, which says what went wrong."""
    own = error.__traceback__
    lines = traceback.format_exception(type(error), error, own.tb_next if own else None)
    written = "".join(lines).encode("utf-8", "replace")
    return written[-text.STACK_TRACE_MAX_BYTES :].decode("utf-8", "ignore")
