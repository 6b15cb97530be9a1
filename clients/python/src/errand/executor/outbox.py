"""What an executor has to tell its supervisor, gathered into few frames."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from typing import Any

from .wire import frame

BATCH_MAX = 64
"""Items after which whoever adds one sends them all, though more may follow at once."""


class Outbox:
    """Any thread adds, any thread flushes; what is added first is told first.

    Its size is bounded by whoever adds: from `BATCH_MAX` items on, adding waits until the supervisor has read them.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._items: deque[tuple[Any, ...]] = deque()
        self._sending = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def add(self, *item: Any) -> None:
        """Adds one item: it is sent by the next flush, or at once if there are many."""
        self._items.append(item)
        if len(self._items) >= BATCH_MAX:
            self.flush()

    def flush(self) -> None:
        """Sends what is there. Waits where the supervisor is slow to read."""
        if not self._items:
            return
        with self._sending:
            batch = []
            # Only under the lock is anything taken out, so an item that was seen is still there.
            for _ in range(len(self._items)):
                batch.append(self._items.popleft())
            if batch:
                # Where the supervisor is gone nobody is left to tell, and the main loop is about to end the process.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self._sock.sendall(frame(batch))
