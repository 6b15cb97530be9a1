"""The runner's side of the `Attach` protocol.

One event loop owns the ledger, the stream and the executors' sockets, and no job function ever runs on it: a
heartbeat waits for no function. Losing the stream stops nothing: the session dials again, the next server first,
names what it holds, and repeats every result that has no receipt.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from enum import IntEnum
from typing import Any

from ..executor import wire
from ..running import Outcome
from ..v1 import runners_pb2
from . import commands
from .backoff import Backoff
from .config import RunnerConfig
from .crew import Crew, Listener
from .ledger import Decision, Key, Ledger, key_of
from .link import CLOSE_SECONDS, Link, LinkError, LinkRefused, LinkTaken
from .process import BrokenExecutor

TAKEN_TRIES_MAX = 9
"""For a runner id that is taken: an own session of before lapses within the resume window of 2 s, and the first
eight delays add up to more."""
STABLE_SECONDS = 1.0
"""A stream that lived this long proves its server; a shorter one counts as a failed attempt."""
FLUSH_SECONDS = 15.0
"""How long a runner that has nothing left to run tries to hand in its results."""
RELEASE_SECONDS = 5.0
"""The same for one that was told to leave at once."""
LINGER_SECONDS = 0.2
"""How long a draining runner stays at least: assignments that were under way are handed back, and not left to lapse."""
HEARTBEAT_SECONDS = 5.0
"""Where the service does not say."""

_logger = logging.getLogger("errand.runner")


class RunnerError(Exception):
    """A runner could not start."""


class Leaving(IntEnum):
    """How far a runner should go in leaving. Only ever grows."""

    STAY = 0
    DRAIN = 1
    """Take nothing more, finish what runs, hand in the results, leave."""
    RELEASE = 2
    """Hand back what runs, leave."""


class Session:
    """A runner from its start to its end."""

    def __init__(self, config: RunnerConfig, client: str) -> None:
        self.config = config
        self.client = client
        self.hostname = config.hostname
        self.paused = False
        self._ledger = Ledger(config.capacity)
        listener = Listener(self._ended, self._ledger.metadata, self._ledger.log, self._settled)
        self._crew = Crew(config.boot, config.processes, listener)
        self._backoff = Backoff()
        self._server = random.randrange(len(config.servers))
        self._session_id = ""
        self._taken_tries = 0
        self._link: Link | None = None
        self._to_write = asyncio.Event()
        self._over = asyncio.Event()
        self._leaving = Leaving.STAY
        self._flushing = False
        self._lingers = False
        self._writing = False
        self._obeying: set[asyncio.Task[None]] = set()
        self._started = time.monotonic()
        self._processed = 0
        self._failed = 0

    async def run(self) -> None:
        """Works until it is shut down, by the caller or by the service.

        `BrokenExecutor` where the modules cannot be loaded, `RunnerError` where the service refuses the very first
        stream; a service that cannot be reached is tried for ever.
        """
        await self._crew.start()
        line = asyncio.ensure_future(self._keep_line())
        over = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait({line, over}, return_when=asyncio.FIRST_COMPLETED)
            if line.done():
                line.result()
            await self._leave(line)
        finally:
            self._over.set()
            tasks = {line, over, *self._obeying}
            for task in tasks:
                task.cancel()
            # With an end to it: up to Python 3.11 `wait_for` may swallow a cancellation.
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
            self._crew.close()

    @property
    def running(self) -> int:
        """Executions that hold a lease."""
        return self._ledger.running()

    def shut_down(self, *, release: bool = False) -> None:
        """Leaves: once what runs has ended, or at once, handing back what runs."""
        leaving = Leaving.RELEASE if release else Leaving.DRAIN
        if leaving <= self._leaving:
            return
        _logger.info("leaving (%s) with %d running", leaving.name.lower(), self._ledger.running())
        self._leaving = leaving
        loop = asyncio.get_running_loop()
        self._lingers = True
        loop.call_later(LINGER_SECONDS, self._linger_over)
        if release:
            # First the end of the functions, then the word that others may run them.
            self._crew.close()
            self._ledger.release_all()
            loop.call_later(RELEASE_SECONDS, self._over.set)
        self._settled()

    def pause(self, *, paused: bool) -> None:
        """Takes no more jobs, or does again."""
        self.paused = paused
        self._settled()

    async def reload(self) -> None:
        """Loads the modules afresh; `BrokenExecutor` where they cannot be loaded."""
        await self._crew.reload()

    def reload_in_background(self) -> None:
        """The same, for whoever does not wait; a failure is logged."""

        async def reload() -> None:
            try:
                await self.reload()
            except BrokenExecutor as error:
                _logger.error("the modules were not loaded afresh: %s", error)

        task = asyncio.ensure_future(reload())
        self._obeying.add(task)
        task.add_done_callback(self._obeyed)

    def status(self) -> dict[str, Any]:
        """What the runner is doing."""
        return {
            "runner_id": self.config.runner_id,
            "channels": list(self.config.channels),
            "capacity": self.config.capacity,
            "running": self._ledger.running(),
            "results_without_receipt": self._ledger.owed(),
            "paused": self.paused,
            "stopping": self._leaving > Leaving.STAY,
            "jobs_processed": self._processed,
            "jobs_failed": self._failed,
            "uptime_seconds": int(time.monotonic() - self._started),
        }

    async def _keep_line(self) -> None:
        """Opens a stream, serves it until it breaks, again and again."""
        while not self._over.is_set():
            await asyncio.sleep(self._backoff.next_delay(random.random()))
            server = self._server
            self._server += 1
            hello = self._hello()
            try:
                link = await Link.open(self.config.servers, server, hello)
            except LinkError as error:
                self._not_opened(error)
                continue
            try:
                await self._serve(link, hello.capacity)
            except LinkError as error:
                if not self._over.is_set():
                    _logger.warning("connection lost, connecting again: %s", error)
            finally:
                self._link = None
                self._writing = False
                await link.close()
            if time.monotonic() - link.since >= STABLE_SECONDS:
                self._backoff.reset()

    def _hello(self) -> runners_pb2.Hello:
        """What is held is named as it stands: while no stream is open no receipt can come."""
        return runners_pb2.Hello(
            runner_id=self.config.runner_id,
            channels=self.config.channels,
            capacity=self._capacity(),
            hostname=self.config.hostname,
            client=self.client,
            session_id=self._session_id,
            leases=self._ledger.leases(),
        )

    def _capacity(self) -> int:
        works = self._leaving is Leaving.STAY and not self.paused and self._crew.is_ready
        return self.config.capacity if works else 0

    def _not_opened(self, error: LinkError) -> None:
        is_first = not self._session_id
        if isinstance(error, LinkRefused) and is_first:
            raise RunnerError(str(error))
        if isinstance(error, LinkTaken):
            if is_first and self._taken_tries >= TAKEN_TRIES_MAX:
                raise RunnerError(f"runner id {self.config.runner_id} is taken by another live runner")
            self._taken_tries += 1
        else:
            _logger.warning("not connected, trying again: %s", error)

    async def _serve(self, link: Link, announced: int) -> None:
        """Until the stream breaks or the server goes away; Hello announced that capacity."""
        welcome = link.welcome
        _logger.info("connected to %s, session %s", welcome.node_id, welcome.session_id)
        self._session_id = welcome.session_id
        for key in self._ledger.welcomed(announced, welcome.lost):
            self._crew.abandon(key)
        self._link = link
        interval = welcome.heartbeat_interval.ToNanoseconds() / 1e9 or HEARTBEAT_SECONDS
        self._to_write.set()
        tasks = [
            asyncio.ensure_future(self._read(link)),
            asyncio.ensure_future(self._write(link)),
            asyncio.ensure_future(self._beat(interval)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _beat(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            self._ledger.heartbeat_due()
            self._to_write.set()

    async def _write(self, link: Link) -> None:
        while True:
            await self._to_write.wait()
            self._to_write.clear()
            self._writing = True
            while (message := self._ledger.next_outgoing()) is not None:
                await link.write(message)
            self._writing = False
            self._check_over()
            if self._over.is_set():
                # Nobody else writes, so nothing is cut off. The service closes its half once it has read everything.
                await link.finish()
                await asyncio.sleep(CLOSE_SECONDS)
                raise LinkError("the server keeps its half of the stream open")

    async def _read(self, link: Link) -> None:
        while (message := await link.read()) is not None:
            kind = message.WhichOneof("message")
            if kind == "go_away":
                raise LinkError(f"the server goes away: {message.go_away.reason}")
            if kind == "assignments":
                self._assign(message.assignments)
            elif kind == "results_accepted":
                self._ledger.receipted(message.results_accepted.receipts)
            elif kind == "interrupt":
                self._interrupt(message.interrupt)
            elif kind == "command":
                self._obey(message.command)
            # Anything else is a second Welcome, or of a later protocol.
            self._settled()
        raise LinkError("the server closed the stream")

    def _assign(self, assignments: runners_pb2.Assignments) -> None:
        orders = []
        for assignment in assignments.assignments:
            if self._ledger.assign(assignment.lease) is Decision.START:
                orders.append((key_of(assignment.lease), self._order(assignment)))
        self._crew.begin(orders)

    def _order(self, assignment: runners_pb2.Assignment) -> wire.Order:
        job = assignment.job
        limit = job.max_exec_seconds
        return wire.Order(
            self._crew.next_serial(),
            job.id,
            job.attempt,
            job.func,
            job.channel,
            job.payload_json,
            job.metadata_json,
            # By this machine's clock, which the function can compare it with; the service's may differ.
            time.time() + limit if limit else 0.0,
            job.max_retries,
            job.traceparent,
        )

    def _interrupt(self, interrupt: runners_pb2.Interrupt) -> None:
        key = key_of(interrupt.lease)
        stops = (runners_pb2.INTERRUPT_REASON_TIMED_OUT, runners_pb2.INTERRUPT_REASON_LEASE_LOST)
        if interrupt.reason not in stops:
            self._crew.cancel(key)
        elif self._ledger.lose(key):
            self._crew.abandon(key)

    def _obey(self, command: runners_pb2.Command) -> None:
        """In a task of its own: a reload takes as long as the modules take to load."""
        task = asyncio.ensure_future(self._answer(command))
        self._obeying.add(task)
        task.add_done_callback(self._obeyed)

    async def _answer(self, command: runners_pb2.Command) -> None:
        self._ledger.reply(await commands.reply_to(command, self))

    def _obeyed(self, task: asyncio.Task[None]) -> None:
        self._obeying.discard(task)
        self._settled()

    def _ended(self, key: Key, outcome: Outcome, metadata_json: str | None) -> None:
        self._processed += 1
        self._failed += outcome.kind == "failed"
        self._ledger.ended(key, outcome, metadata_json)

    def _settled(self) -> None:
        """Something changed: there may be something to say, or nothing left to do."""
        self._ledger.set_capacity(self._capacity())
        self._to_write.set()
        self._check_over()

    def _linger_over(self) -> None:
        self._lingers = False
        self._check_over()

    def _check_over(self) -> None:
        if self._leaving is Leaving.STAY or self._obeying or self._writing:
            return
        if self._ledger.is_settled():
            if not self._lingers:
                self._over.set()
        elif self._ledger.running() == 0 and not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._over.set)

    async def _leave(self, line: asyncio.Future[None]) -> None:
        """Lets the writer close the stream, for a while."""
        if self._ledger.owed():
            _logger.warning("left without a receipt for %d results", self._ledger.owed())
        if self._link is not None:
            self._to_write.set()
            await asyncio.wait({line}, timeout=2 * CLOSE_SECONDS)
