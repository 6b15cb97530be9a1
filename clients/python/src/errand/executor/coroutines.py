"""One event loop, on a thread of its own, for job functions that are coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar


class Numbered(Protocol):
    """Work with a serial of its own."""

    @property
    def serial(self) -> int:
        """Names it."""
        ...


Work = TypeVar("Work", bound=Numbered)


class Coroutines(Generic[Work]):
    """Runs work as coroutines, all of it at the same time. The caller bounds how much there is."""

    def __init__(self, run: Callable[[Work], Awaitable[None]], idle: Callable[[], None]) -> None:
        """`run` does one piece of work and raises nothing; `idle` is called once some has ended."""
        self._run = run
        self._idle = idle
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._idle_is_due = False

    def add(self, work: list[Work]) -> None:
        """Hands work over; the first makes the loop."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="errand-coroutines", daemon=True).start()
        self._loop.call_soon_threadsafe(self._begin, work)

    def cancel(self, serial: int) -> None:
        """Cancels the coroutine of one piece of work, if it still runs."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._cancel, serial)

    def _begin(self, work: list[Work]) -> None:
        for piece in work:
            task = asyncio.ensure_future(self._do(piece))
            self._tasks[piece.serial] = task

    def _cancel(self, serial: int) -> None:
        task = self._tasks.get(serial)
        if task is not None:
            task.cancel()

    async def _do(self, piece: Work) -> None:
        try:
            await self._run(piece)
        finally:
            self._tasks.pop(piece.serial, None)
            if not self._idle_is_due:
                # After whatever else ends in this turn of the loop.
                self._idle_is_due = True
                asyncio.get_running_loop().call_soon(self._call_idle)

    def _call_idle(self) -> None:
        self._idle_is_due = False
        self._idle()
