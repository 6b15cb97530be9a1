"""The executors of a runner: which process executes what, and what becomes of one that fails or gets stuck.

The crew promises that every execution it was given ends in exactly one call of `ended`, unless it was abandoned.
A function cannot be stopped from outside its process. So an executor with a function that does not stop although
nobody wants its result is retired: a fresh one takes its place, it finishes what is still wanted, and is killed.
A reload works the same way.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..executor import wire
from ..registry import Kind
from ..running import Line, Outcome
from .backoff import Backoff
from .ledger import Key
from .process import BrokenExecutor, ExecutorProcess

GRACE_SECONDS = 5.0
"""How long an execution that nobody wants may take to stop."""

_logger = logging.getLogger("errand.runner")


@dataclass
class Execution:
    """One execution, and the process that has it; None while it waits for one."""

    key: Key
    order: wire.Order
    process: ExecutorProcess | None = None
    wanted: bool = True


@dataclass(frozen=True)
class Listener:
    """Who hears of executions."""

    ended: Callable[[Key, Outcome, str | None], None]
    metadata: Callable[[Key, str], None]
    log: Callable[[Key, Line], None]
    settled: Callable[[], None]
    """Called after any of the others, once for all that came together, and when `is_ready` changes."""


class Crew:
    """Gives executions to executors."""

    def __init__(self, boot: wire.Boot, processes: int, listener: Listener) -> None:
        """`processes` is how many functions that want a process of their own run at once."""
        self._boot = boot
        self._processes_max = processes
        self._listener = listener
        self._serials = itertools.count(1)
        self._executions: dict[int, Execution] = {}
        self._serial_of: dict[Key, int] = {}
        self._kinds: dict[str, str] = {}
        self._main: ExecutorProcess | None = None
        """Runs threads and coroutines; None while a new one starts after a crash."""
        self._pool: list[ExecutorProcess] = []
        """Each runs one function at a time."""
        self._starting = 0
        self._retired: set[ExecutorProcess] = set()
        self._replacing = False
        self._backlog: dict[str, deque[int]] = {kind.value: deque() for kind in Kind}
        self._background: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def is_ready(self) -> bool:
        """Whether there is an executor; there is none for a while after one crashed."""
        return self._main is not None

    async def start(self) -> None:
        """Starts the first executor; `BrokenExecutor` where it cannot load the modules."""
        self._main, self._kinds = await self._spawn()

    async def reload(self) -> None:
        """Loads the modules afresh for whatever starts from now on.

        `BrokenExecutor` where they cannot be loaded; then everything stays as it is.
        """
        fresh, kinds = await self._spawn()
        self._kinds = kinds
        for process in [self._main, *self._pool]:
            if process is not None:
                self._retire(process)
        self._pool.clear()
        self._main = fresh
        self._dispatch()

    def close(self) -> None:
        """Kills every executor; nothing more is told of what they ran."""
        self._closed = True
        for task in self._background:
            task.cancel()
        for process in [self._main, *self._pool, *self._retired]:
            if process is not None:
                process.close()

    def next_serial(self) -> int:
        """For the next order."""
        return next(self._serials)

    def begin(self, orders: list[tuple[Key, wire.Order]]) -> None:
        """Executes."""
        for key, order in orders:
            serial = order.serial
            self._executions[serial] = Execution(key, order)
            self._serial_of[key] = serial
            kind = self._kinds.get(order.func, Kind.THREAD.value)
            self._backlog[kind].append(serial)
        self._dispatch()

    def cancel(self, key: Key) -> None:
        """Somebody asked for it: the function is told, and may return early."""
        serial = self._serial_of.get(key)
        if serial is None:
            return
        execution = self._executions[serial]
        if execution.process is not None:
            execution.process.send(wire.CANCEL, serial)
            return
        self._drop(serial)
        self._listener.ended(key, Outcome("canceled"), None)
        self._listener.settled()

    def abandon(self, key: Key) -> None:
        """Nobody wants its result: it should stop, and is made to after a while."""
        serial = self._serial_of.pop(key, None)
        if serial is None:
            return
        execution = self._executions[serial]
        execution.wanted = False
        if execution.process is None:
            self._drop(serial)
            self._listener.ended(key, Outcome("canceled"), None)
            return
        execution.process.send(wire.ABANDON, serial)
        asyncio.get_running_loop().call_later(GRACE_SECONDS, self._enforce, serial)

    def _drop(self, serial: int) -> None:
        """Forgets an execution that no process has."""
        execution = self._executions.pop(serial)
        self._serial_of.pop(execution.key, None)

    def _enforce(self, serial: int) -> None:
        execution = self._executions.get(serial)
        if execution is None or execution.process is None or self._closed:
            return
        process = execution.process
        _logger.warning(
            "%s of job %s does not stop; its process ends when nothing else runs in it",
            execution.order.func,
            execution.key.job_id,
        )
        if process in self._pool:
            self._pool.remove(process)
        elif process is self._main:
            if not self._replacing:
                self._replacing = True
                self._in_background(self._replace(process))
            return
        self._retire(process)

    async def _replace(self, stuck: ExecutorProcess) -> None:
        try:
            fresh, kinds = await self._spawn()
        except BrokenExecutor as error:
            # The old one still works, with a thread that is lost to it; to have none would be worse.
            _logger.error("a fresh executor could not be started: %s", error)
            return
        finally:
            self._replacing = False
        if self._main is stuck:
            self._main, self._kinds = fresh, kinds
            self._retire(stuck)
            self._dispatch()
        else:
            # It crashed or was reloaded meanwhile.
            fresh.close()

    def _retire(self, process: ExecutorProcess) -> None:
        """It gets nothing more, and goes when nothing that it runs is wanted."""
        process.retiring = True
        self._retired.add(process)
        if not any(self._executions[serial].wanted for serial in process.live):
            process.kill()

    def _dispatch(self) -> None:
        """Gives what waits to whoever is free."""
        if self._main is not None:
            serials = [*self._backlog[Kind.THREAD.value], *self._backlog[Kind.COROUTINE.value]]
            self._backlog[Kind.THREAD.value].clear()
            self._backlog[Kind.COROUTINE.value].clear()
            self._give(self._main, serials)
        queue = self._backlog[Kind.PROCESS.value]
        for process in self._pool:
            while queue and not process.live:
                self._give(process, [queue.popleft()])
        while queue and len(self._pool) + self._starting < self._processes_max and self._starting < len(queue):
            self._starting += 1
            self._in_background(self._grow())

    def _give(self, process: ExecutorProcess, serials: list[int]) -> None:
        # What was canceled while it waited is gone.
        executions = [self._executions[serial] for serial in serials if serial in self._executions]
        if not executions:
            return
        for execution in executions:
            execution.process = process
            process.live.add(execution.order.serial)
        process.send(wire.START, [tuple(execution.order) for execution in executions])

    async def _grow(self) -> None:
        """Adds a process to the pool."""
        backoff = Backoff()
        try:
            while True:
                try:
                    process, _ = await self._spawn()
                    break
                except BrokenExecutor as error:
                    _logger.error("an executor could not be started: %s", error)
                    await asyncio.sleep(backoff.next_delay(random.random()))
            self._pool.append(process)
        finally:
            self._starting -= 1
        self._dispatch()

    async def _spawn(self) -> tuple[ExecutorProcess, dict[str, str]]:
        process = ExecutorProcess(self._said, self._gone)
        return process, await process.started(self._boot)

    def _said(self, process: ExecutorProcess, items: list[tuple[Any, ...]]) -> None:
        for item in items:
            kind, serial = item[0], item[1]
            execution = self._executions.get(serial)
            if execution is None:
                continue
            if kind == wire.ENDED:
                self._ended(process, serial, Outcome(*item[2]), item[3])
            elif execution.wanted and kind == wire.METADATA:
                self._listener.metadata(execution.key, item[2])
            elif execution.wanted and kind == wire.LOG:
                self._listener.log(execution.key, Line(*item[2:]))
        if self._backlog[Kind.PROCESS.value]:
            self._dispatch()
        if process.retiring and not any(self._executions[serial].wanted for serial in process.live):
            process.kill()
        self._listener.settled()

    def _ended(self, process: ExecutorProcess, serial: int, outcome: Outcome, metadata_json: str | None) -> None:
        execution = self._executions.pop(serial)
        process.live.discard(serial)
        if execution.wanted:
            del self._serial_of[execution.key]
        self._listener.ended(execution.key, outcome, metadata_json)

    def _gone(self, process: ExecutorProcess) -> None:
        """A process ended, asked to or not. What it ran and somebody wants has failed."""
        if self._closed:
            return
        self._retired.discard(process)
        if process in self._pool:
            self._pool.remove(process)
        ending = process.ending()
        for serial in sorted(process.live):
            self._ended(process, serial, Outcome("failed", f"the process that ran the function {ending}"), None)
        if process is self._main:
            _logger.error("an executor %s; starting another", ending)
            self._main = None
            self._in_background(self._restart())
        self._dispatch()
        self._listener.settled()

    async def _restart(self) -> None:
        backoff = Backoff()
        while self._main is None:
            try:
                await asyncio.sleep(backoff.next_delay(random.random()))
                self._main, self._kinds = await self._spawn()
            except BrokenExecutor as error:
                _logger.error("an executor could not be started: %s", error)
        self._dispatch()
        self._listener.settled()

    def _in_background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _logger.critical("looking after the executors failed", exc_info=task.exception())
