"""Runners: they take jobs from the service and execute them.

The process that calls `Runner.run` becomes a supervisor. It talks to the service and runs no job function itself;
those run in executor processes that it starts, see `errand.executor`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Sequence
from functools import partial
from types import ModuleType

from ..endpoint import Servers, Tls, Token
from .config import configure
from .process import BrokenExecutor
from .session import RunnerError, Session

__all__ = ["Runner", "RunnerError"]


class Runner:
    """Executes jobs of some channels with the functions of some modules.

    ```python
    errand.Runner(["myapp.jobs"], channels=["emails"], capacity=20).run()
    ```

    Plain functions run on threads, coroutine functions on an event loop, and functions declared with
    `@errand.job(process=True)` in processes. With `processes` given, plain functions run in processes too, that many
    at once. The modules are imported in those other processes; `"__main__"` names the program's own file, which then
    must start its runner under `if __name__ == "__main__":`.
    """

    def __init__(
        self,
        modules: Sequence[str | ModuleType],
        *,
        server: str | Sequence[str] | None = None,
        token: Token | None = None,
        channels: Sequence[str] = ("default",),
        capacity: int | None = None,
        processes: int | None = None,
        runner_id: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        """`ValueError` says which argument is wrong; nothing is started or connected here.

        `server` and `token` default to `ERRAND_SERVER` and `ERRAND_TOKEN`, several servers are tried in turn. The
        runner never holds more than `capacity` jobs, 10 unless it is given; `runner_id` defaults to host and pid.
        """
        self.config = configure(
            modules,
            Servers(server, token, tls),
            channels=channels,
            capacity=capacity,
            processes=processes,
            runner_id=runner_id,
        )
        self._session: Session | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_asked: bool | None = None
        self._guard = threading.Lock()

    def run(self) -> None:
        """Works until the runner is told to stop.

        In the main thread SIGTERM and SIGINT let it finish what runs, a second one hands back what runs, and SIGHUP
        loads the modules afresh. `RunnerError` says why it could not start.
        """
        asyncio.run(self.serve(signals=threading.current_thread() is threading.main_thread()))

    async def serve(self, *, signals: bool = False) -> None:
        """The same within an event loop. Whatever else the loop does must not keep it from sending heartbeats."""
        from .. import __version__

        session = Session(self.config, f"errand-python/{__version__}")
        loop = asyncio.get_running_loop()
        with self._guard:
            self._session, self._loop = session, loop
            if self._stop_asked is not None:
                session.shut_down(release=self._stop_asked)
        handled = self._handle_signals(session, loop) if signals else []
        try:
            await session.run()
        except BrokenExecutor as error:
            raise RunnerError(str(error)) from None
        finally:
            for number in handled:
                loop.remove_signal_handler(number)
            with self._guard:
                self._session = self._loop = None

    def stop(self, *, release: bool = False) -> None:
        """Ends `run`, from any thread: once what runs has ended, or at once, handing back what runs."""
        with self._guard:
            if self._session is not None and self._loop is not None:
                self._loop.call_soon_threadsafe(partial(self._session.shut_down, release=release))
            else:
                self._stop_asked = bool(self._stop_asked) or release

    def _handle_signals(self, session: Session, loop: asyncio.AbstractEventLoop) -> list[signal.Signals]:
        asked = 0

        def leave() -> None:
            nonlocal asked
            asked += 1
            session.shut_down(release=asked > 1)

        def reload() -> None:
            session.reload_in_background()

        handlers = {signal.SIGTERM: leave, signal.SIGINT: leave, signal.SIGHUP: reload}
        handled = []
        for number, handler in handlers.items():
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, handler)
                handled.append(number)
        return handled
