"""What a publisher says of a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypedDict

from . import text
from .records import time_to_wire
from .registry import name_of
from .v1 import jobs_pb2

Seconds = int | timedelta
"""Whole seconds, as a number or a timedelta; a part of a second is rounded up."""


class Options(TypedDict, total=False):
    """Everything about a job besides its function and payload. What is left out is the service's default."""

    channel: str
    """Which runners take it; `default`."""
    delay: Seconds
    """How long to wait before it runs."""
    run_at: datetime
    """When to run it, in place of `delay`."""
    expires_in: Seconds
    """When to give up waiting for a runner, counted from its run time; 900."""
    expires_at: datetime
    """The same as a moment, in place of `expires_in`."""
    max_retries: int
    """Retries after the first execution; 3."""
    backoff_base: float
    """Retry k starts after `backoff_base ** k` seconds, more or less; 2.0."""
    backoff_max: Seconds
    """The longest such wait; 3,600."""
    broadcast: bool
    """Whether every runner of the channel executes it."""
    max_exec_seconds: Seconds
    """The hard limit of one execution; none."""
    idempotency_key: str
    """The same key again answers with the first job, unless its content differs."""
    priority: int
    """Higher first within a channel; 0."""


@dataclass(frozen=True)
class JobSpec:
    """A job to publish: the fields are those of `Options`, None for the service's default."""

    func: str | Callable[..., Any]
    """The job function, or the name that runners know it by."""
    payload: dict[str, Any] = field(default_factory=dict)
    channel: str | None = None
    delay: Seconds | None = None
    run_at: datetime | None = None
    expires_in: Seconds | None = None
    expires_at: datetime | None = None
    max_retries: int | None = None
    backoff_base: float | None = None
    backoff_max: Seconds | None = None
    broadcast: bool | None = None
    max_exec_seconds: Seconds | None = None
    idempotency_key: str | None = None
    priority: int | None = None

    def to_wire(self) -> jobs_pb2.JobSpec:
        """As the contract spells it; `TypeError` or `ValueError` naming the field that cannot be."""
        payload_json = text.object_to_json("payload", self.payload)
        return spec_to_wire(name_of(self.func), payload_json, self)


def spec_to_wire(func: str, payload_json: str, options: JobSpec) -> jobs_pb2.JobSpec:
    """The options of a spec beside a function and a payload; both are left out where they are empty."""
    if options.delay is not None and options.run_at is not None:
        raise ValueError("a job has a delay or a run_at, not both")
    if options.expires_in is not None and options.expires_at is not None:
        raise ValueError("a job has an expires_in or an expires_at, not both")
    wire = jobs_pb2.JobSpec(func=func, payload_json=payload_json)
    if options.run_at is not None:
        wire.run_at.CopyFrom(time_to_wire(options.run_at))
    if options.expires_at is not None:
        wire.expires_at.CopyFrom(time_to_wire(options.expires_at))
    given = {
        "channel": options.channel,
        "delay_seconds": _seconds("delay", options.delay),
        "expires_in_seconds": _seconds("expires_in", options.expires_in),
        "max_retries": options.max_retries,
        "backoff_base": options.backoff_base,
        "backoff_max_seconds": _seconds("backoff_max", options.backoff_max),
        "broadcast": options.broadcast,
        "max_exec_seconds": _seconds("max_exec_seconds", options.max_exec_seconds),
        "idempotency_key": options.idempotency_key,
        "priority": options.priority,
    }
    for name, value in given.items():
        if value is not None:
            try:
                setattr(wire, name, value)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name}: {error}") from error
    return wire


def _seconds(name: str, value: Seconds | None) -> int | None:
    if value is None:
        return None
    whole = -(-value // timedelta(seconds=1)) if isinstance(value, timedelta) else value
    if whole < 0:
        raise ValueError(f"{name} must not be negative")
    return whole
