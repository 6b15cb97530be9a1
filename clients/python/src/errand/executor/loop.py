"""An executor's main loop: reads orders, sees that work gets on, and reports what changes while it runs."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from typing import Any, NamedTuple

from ..invoke import failed, invoke, invoke_coroutine
from ..registry import Catalogue, Entry, Kind, UnknownFunction
from ..running import Line, Outcome, RunningJob
from . import wire
from .coroutines import Coroutines
from .outbox import Outbox
from .threads import TICK_SECONDS, Threads

REPORT_SECONDS = 0.2
"""How often metadata and log lines of what runs are reported."""
READ_BYTES = 256 * 1024


class Execution(NamedTuple):
    """A job, the function that it names, and its serial."""

    serial: int
    entry: Entry
    job: RunningJob


class Executor:
    """Runs what it is told to, until the socket closes."""

    def __init__(self, sock: socket.socket, catalogue: Catalogue) -> None:
        self._sock = sock
        self._catalogue = catalogue
        self._outbox = Outbox(sock)
        self._threads = Threads[Execution](self._run, self._outbox.flush)
        self._coroutines = Coroutines[Execution](self._run_coroutine, self._outbox.flush)
        self._live: dict[int, Execution] = {}
        self._next_report = 0.0

    def serve(self, frames: wire.Frames) -> None:
        """Returns once the supervisor is gone."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        while True:
            if poll.poll(self._patience_ms()):
                data = self._sock.recv(READ_BYTES)
                if not data:
                    return
                for content in frames.feed(data):
                    self._obey(content)
            self._threads.tick(len(self._live))
            now = time.monotonic()
            if now >= self._next_report:
                self._next_report = now + REPORT_SECONDS
                self._report()
            self._outbox.flush()

    def _patience_ms(self) -> int | None:
        """Only this loop adds work: while some waits, or an end waits to be told, it keeps looking."""
        if self._threads.waiting() or len(self._outbox):
            return int(TICK_SECONDS * 1000)
        return int(REPORT_SECONDS * 1000) if self._live else None

    def _obey(self, content: tuple[Any, ...]) -> None:
        kind, said = content
        if kind == wire.START:
            self._start([wire.Order(*order) for order in said])
            return
        execution = self._live.get(said)
        if execution is None:
            return
        execution.job._request_cancel()
        if kind == wire.ABANDON and execution.entry.kind is Kind.COROUTINE:
            self._coroutines.cancel(said)

    def _start(self, orders: list[wire.Order]) -> None:
        calls: list[Execution] = []
        coroutines: list[Execution] = []
        for order in orders:
            execution = self._execution(order)
            if execution is None:
                continue
            self._live[order.serial] = execution
            (coroutines if execution.entry.kind is Kind.COROUTINE else calls).append(execution)
        if calls:
            self._threads.add(calls)
        if coroutines:
            self._coroutines.add(coroutines)

    def _execution(self, order: wire.Order) -> Execution | None:
        """None where there is nothing to execute; that has been told then."""
        try:
            entry = self._catalogue.find(order.func)
            job = RunningJob(
                id=order.job_id,
                attempt=order.attempt,
                func=order.func,
                channel=order.channel,
                payload_json=order.payload_json,
                metadata_json=order.metadata_json,
                deadline=datetime.fromtimestamp(order.deadline, timezone.utc) if order.deadline else None,
                max_retries=order.max_retries,
                traceparent=order.traceparent,
                write=partial(self._log, order.serial),
            )
        except UnknownFunction as error:
            outcome = Outcome("failed", str(error), permanent=True)
        except (ValueError, RecursionError) as error:
            outcome = Outcome("failed", f"the payload cannot be read: {error}", permanent=True)
        else:
            return Execution(order.serial, entry, job)
        self._outbox.add(wire.ENDED, order.serial, tuple(outcome), None)
        return None

    def _run(self, execution: Execution) -> None:
        self._end(execution, invoke(execution.entry, execution.job))

    async def _run_coroutine(self, execution: Execution) -> None:
        self._end(execution, await invoke_coroutine(execution.entry, execution.job))

    def _end(self, execution: Execution, outcome: Outcome) -> None:
        metadata_json = self._metadata(execution)
        self._live.pop(execution.serial, None)
        self._outbox.add(wire.ENDED, execution.serial, tuple(outcome), metadata_json)

    def _metadata(self, execution: Execution) -> str | None:
        try:
            return execution.job._changed_metadata()
        except (TypeError, ValueError, RecursionError) as error:
            self._log(execution.serial, Line(time.time(), "warn", f"metadata was not reported: {error}", "{}"))
            return None

    def _log(self, serial: int, line: Line) -> None:
        self._outbox.add(wire.LOG, serial, *line)

    def _report(self) -> None:
        """Tells the metadata that changed. A function may change it meanwhile: what is torn is read again later."""
        for execution in list(self._live.values()):
            try:
                changed = execution.job._changed_metadata()
            except (TypeError, ValueError, RecursionError, RuntimeError):
                continue
            if changed is not None:
                self._outbox.add(wire.METADATA, execution.serial, changed)


def boot(sock: socket.socket, load: Callable[[wire.Boot], Catalogue]) -> None:
    """Waits for the first frame, loads the modules that it names, and serves."""
    frames = wire.Frames()
    contents: list[Any] = []
    while not contents:
        data = sock.recv(READ_BYTES)
        if not data:
            return
        contents = frames.feed(data)
    try:
        catalogue = load(wire.Boot(*contents[0][1]))
    except BaseException as error:
        outcome = failed(error)
        sock.sendall(wire.frame([(wire.BROKEN, outcome.said, outcome.stack_trace)]))
        return
    sock.sendall(wire.frame([(wire.READY, catalogue.kinds())]))
    Executor(sock, catalogue).serve(frames)
