"""One executor process, as its supervisor sees it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

from ..executor import wire

BOOT_SECONDS = 300.0
"""For the imports of the modules; some load models of gigabytes."""


class BrokenExecutor(Exception):
    """An executor could not load the modules that it should."""


class ExecutorProcess(asyncio.Protocol):
    """Starts a process and exchanges frames with it. Call `started` once, then `send`."""

    def __init__(
        self,
        said: Callable[[ExecutorProcess, list[tuple[Any, ...]]], None],
        gone: Callable[[ExecutorProcess], None],
    ) -> None:
        """`said` gets what the executor tells, `gone` is called once it has closed its socket."""
        self._said = said
        self._gone = gone
        self._frames = wire.Frames()
        self._ready: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self.live: set[int] = set()
        """The serials of what it executes, wanted or not."""
        self.retiring = False
        """It gets nothing more to do."""

    async def started(self, boot: wire.Boot) -> dict[str, str]:
        """Waits until the modules are loaded; answers the kind of each function.

        `BrokenExecutor` tells why they could not be.
        """
        own, other = socket.socketpair()
        with other:
            # Popen forks only to execute at once, so the threads of this process do no harm.
            self._child = subprocess.Popen(
                [sys.executable, "-m", "errand.executor", str(other.fileno())],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
            )
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, sock=own)
        self._write(wire.frame((wire.BOOT, tuple(boot))))
        try:
            return await asyncio.wait_for(self._ready, BOOT_SECONDS)
        except asyncio.TimeoutError:
            self.kill()
            raise BrokenExecutor(f"the modules were not loaded within {BOOT_SECONDS:.0f} s") from None
        except BaseException:
            self.kill()
            raise

    def send(self, *content: Any) -> None:
        """Sends one frame; one that has gone hears nothing."""
        self._write(wire.frame(content))

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def kill(self) -> None:
        """Ends it at once, whatever it does. `gone` is called all the same."""
        if self._child is not None and self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._child.kill()

    def close(self) -> None:
        """Kills it, waits for its end, and forgets it: `gone` is not called."""
        self.kill()
        self._child, child = None, self._child
        if child is not None:
            child.wait()
        if self._transport is not None:
            self._transport.abort()

    def ending(self) -> str:
        """How it ended, for people. It has closed its socket, so its end has come or is near."""
        if self._child is None:
            return "could not be started"
        try:
            code = self._child.wait(1)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with status {code}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio calls this."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Asyncio calls this."""
        for content in self._frames.feed(data):
            if not self._ready.done():
                self._booted(content[0])
            else:
                self._said(self, content)

    def _booted(self, first: tuple[Any, ...]) -> None:
        if first[0] == wire.READY:
            self._ready.set_result(first[1])
        else:
            self._ready.set_exception(BrokenExecutor(f"{first[1]}\n{first[2]}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio calls this."""
        if not self._ready.done():
            self._ready.set_exception(BrokenExecutor(f"the executor {self.ending()} while it loaded the modules"))
        elif self._child is not None:
            self._gone(self)
