"""Threads for functions, woken as seldom as will do.

Waking a thread costs more than many a job. So a batch of jobs wakes one thread, which runs them one after the other,
and only when it stays in one for a moment are others woken for the rest. Who notices is the executor's main loop,
which calls `tick` at least every `TICK_SECONDS` while jobs are waiting.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Work = TypeVar("Work")

TICK_SECONDS = 0.001
"""How long work may wait for a thread before somebody looks."""
STILL_MAX = 16
"""No more threads than this power of two are woken at once."""
SLOW_PER_TICK = 2
"""No more jobs than this begun between two ticks: they take long enough for another thread to be of use."""


class Threads(Generic[Work]):
    """Runs work; as many threads as there is work that takes long. The caller bounds how much work there is."""

    def __init__(self, run: Callable[[Work], None], idle: Callable[[], None]) -> None:
        """`run` does one piece of work and raises nothing; `idle` is called when a thread finds nothing to do."""
        self._run = run
        self._idle = idle
        self._waiting: deque[Work] = deque()
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._waiting_before = 0
        self._next_tick = 0.0
        self._still = 0
        self._started = 0

    def waiting(self) -> int:
        """How much work no thread has taken."""
        return len(self._waiting)

    def add(self, work: list[Work]) -> None:
        """Hands work over. Only ever called by one thread, the one that ticks."""
        if not self._waiting:
            self._next_tick = time.monotonic() + TICK_SECONDS
            self._waiting_before = 0
        self._waiting_before += len(work)
        self._waiting.extend(work)
        if self._started == 0:
            self._start(1)
        elif self._wakes.empty():
            self._wakes.put(None)

    def tick(self, unfinished: int) -> None:
        """Looks, every `TICK_SECONDS`, whether work gets on, and wakes or starts threads where it does not.

        Twice as many with every tick in which nothing began: on a busy machine one tick proves nothing, and threads
        that wake for nothing keep the others from working. There are never more than pieces of work were unfinished
        at once.
        """
        now = time.monotonic()
        if now < self._next_tick:
            return
        self._next_tick = now + TICK_SECONDS
        waiting = len(self._waiting)
        begun = self._waiting_before - waiting
        self._waiting_before = waiting
        self._still = self._still + 1 if begun == 0 else 0
        if waiting == 0 or begun > SLOW_PER_TICK:
            return
        wanted = min(waiting, 2 ** min(self._still, STILL_MAX) // 2 or 1)
        if self._wakes.qsize():
            # Nobody took the wakes of the last tick: every thread is busy. A new one begins without a wake.
            self._start(min(wanted, unfinished - self._started))
        else:
            for _ in range(wanted):
                self._wakes.put(None)

    def _start(self, count: int) -> None:
        for _ in range(count):
            self._started += 1
            threading.Thread(target=self._work, name=f"errand-job-{self._started}", daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                work = self._waiting.popleft()
            except IndexError:
                self._idle()
                if not self._waiting:
                    self._wakes.get()
                continue
            self._run(work)
