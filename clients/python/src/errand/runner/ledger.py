"""What a runner holds and owes: leases, results without a receipt, and what is to be said next.

Pure bookkeeping. No clock, no tasks, no sockets: the session performs what the ledger decides. A lease is held from
its assignment until the receipt of its result, and every regular heartbeat names exactly the held ones; an execution
whose lease is lost is stopped, and its result goes nowhere.

New assignments are accepted at once, by a heartbeat that names only them. It must not name the others: a lease whose
receipt is on its way would be answered as lost, one message for each, and a busy runner always has many of those.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from ..running import Line, Outcome
from ..v1 import job_pb2, runners_pb2

RESULTS_MAX = 512
"""Results in one message."""
RESULTS_MAX_BYTES = 2 * 1024 * 1024
"""Below what a service takes by default, with one large result to spare."""
LINES_MAX = 1000
"""Log lines in one message: as many as are kept of one."""
LINES_MAX_BYTES = 1024 * 1024
LINES_QUEUED_MAX = 10_000
"""Log lines kept while they cannot be sent, of all jobs together; those beyond are dropped and counted."""
REPLIES_MAX = 64
"""Replies kept for a service that stopped reading."""
SPENT_MAX = 16_384
"""Accepted attempts remembered, so that a repeated assignment is recognised."""
LINE_OVERHEAD_BYTES = 32


class Key(NamedTuple):
    """Names one attempt of one job."""

    job_id: str
    attempt: int


class Decision(Enum):
    """What to do with an assignment."""

    START = "start"
    DUPLICATE = "duplicate"
    """Held or done already: run nothing."""
    RELEASED = "released"
    """No room: it is handed back."""


class _Progress:
    """What an execution said that has not been sent."""

    __slots__ = ("dropped", "dropped_at", "lines", "metadata_json")

    def __init__(self) -> None:
        self.metadata_json: str | None = None
        self.lines: deque[Line] = deque()
        self.dropped = 0
        self.dropped_at = 0.0


class Ledger:
    """See the module."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        """What the service should know."""
        self._announced = capacity
        """What it was told last."""
        self._held: dict[Key, job_pb2.Lease] = {}
        """Executions that hold a lease."""
        self._dying: set[Key] = set()
        """Executions whose lease is lost, until they end."""
        self._unreceipted: dict[Key, runners_pb2.Result] = {}
        self._to_send: deque[Key] = deque()
        """Of the unreceipted, those that were not sent on this stream."""
        self._progress: dict[Key, _Progress] = {}
        # What each running execution reported last: it goes with the result too, for its message may be lost.
        self._reported: dict[Key, str] = {}
        self._lines_queued = 0
        self._spent: OrderedDict[Key, None] = OrderedDict()
        self._replies: deque[runners_pb2.CommandReply] = deque()
        self._heartbeat_due = False
        self._to_accept: list[Key] = []

    def running(self) -> int:
        """Executions that hold a lease."""
        return len(self._held)

    def owed(self) -> int:
        """Results without a receipt."""
        return len(self._unreceipted)

    def is_settled(self) -> bool:
        """Whether nothing runs and nothing is left to say."""
        return not (self._held or self._unreceipted or self._replies)

    def leases(self) -> list[job_pb2.Lease]:
        """Every lease held: running, or ended without a receipt so far."""
        return [*self._held.values(), *(result.lease for result in self._unreceipted.values())]

    def set_capacity(self, capacity: int) -> None:
        """What the service is to know from now on; 0 pauses."""
        self._capacity = capacity

    def heartbeat_due(self) -> None:
        """It is time for one."""
        self._heartbeat_due = True

    def welcomed(self, capacity: int, lost: Iterable[job_pb2.Lease]) -> list[Key]:
        """A stream is up, and was opened with `capacity`. Returns the executions to stop."""
        self._announced = capacity
        self._heartbeat_due = True
        stopped = [key for key in map(key_of, lost) if self.lose(key)]
        # Whatever was said on the stream before may not have been heard.
        self._to_send = deque(self._unreceipted)
        return stopped

    def assign(self, lease: job_pb2.Lease) -> Decision:
        """Takes an assignment, or says why not."""
        key = key_of(lease)
        if key in self._unreceipted:
            # Still owed: say it again rather than run it again.
            self._to_send.append(key)
            return Decision.DUPLICATE
        if key in self._spent or key in self._held:
            return Decision.DUPLICATE
        # While an earlier execution of this very attempt is dying, it cannot start here.
        if key not in self._dying and len(self._held) < self._capacity:
            self._held[key] = lease
            self._to_accept.append(key)
            return Decision.START
        self._owe(key, runners_pb2.Result(lease=lease, released=runners_pb2.Released()))
        return Decision.RELEASED

    def ended(self, key: Key, outcome: Outcome, metadata_json: str | None) -> None:
        """An execution ended. What it said before goes before its result."""
        self._dying.discard(key)
        lease = self._held.pop(key, None)
        reported = self._reported.pop(key, None)
        if lease is not None:
            self._owe(key, result_of(lease, outcome, metadata_json if metadata_json is not None else reported))

    def release_all(self) -> None:
        """Whatever runs is handed back, at no cost to its job."""
        for key, lease in self._held.items():
            self._owe(key, runners_pb2.Result(lease=lease, released=runners_pb2.Released()))
        self._held.clear()
        self._reported.clear()

    def _owe(self, key: Key, result: runners_pb2.Result) -> None:
        self._unreceipted[key] = result
        self._to_send.append(key)

    def receipted(self, receipts: Iterable[runners_pb2.ResultReceipt]) -> None:
        """The service has these results."""
        for receipt in receipts:
            key = key_of(receipt.lease)
            result = self._unreceipted.pop(key, None)
            # A released attempt may come again under the same number; a discarded one might.
            if result is not None and receipt.accepted and not result.HasField("released"):
                self._spent[key] = None
                if len(self._spent) > SPENT_MAX:
                    self._spent.popitem(last=False)

    def lose(self, key: Key) -> bool:
        """The lease is gone. True where an execution has to be stopped."""
        self._unreceipted.pop(key, None)
        self._reported.pop(key, None)
        self._forget_progress(key)
        if self._held.pop(key, None) is None:
            return False
        self._dying.add(key)
        return True

    def metadata(self, key: Key, metadata_json: str) -> None:
        """An execution reports itself anew; only the last report counts."""
        if key in self._held:
            self._progress.setdefault(key, _Progress()).metadata_json = metadata_json
            self._reported[key] = metadata_json

    def log(self, key: Key, line: Line) -> None:
        """An execution wrote a line."""
        if key not in self._held:
            return
        progress = self._progress.setdefault(key, _Progress())
        if self._lines_queued < LINES_QUEUED_MAX:
            self._lines_queued += 1
            progress.lines.append(line)
        else:
            progress.dropped += 1
            progress.dropped_at = line.at

    def reply(self, reply: runners_pb2.CommandReply) -> None:
        """Answers a command."""
        if len(self._replies) < REPLIES_MAX:
            self._replies.append(reply)

    def next_outgoing(self) -> runners_pb2.AttachRequest | None:
        """The next message to send, most urgent first; None where there is nothing to say."""
        if self._heartbeat_due:
            self._heartbeat_due = False
            self._to_accept.clear()
            return runners_pb2.AttachRequest(heartbeat=runners_pb2.Heartbeat(leases=self.leases()))
        if self._to_accept:
            accepted = [self._held[key] for key in self._to_accept if key in self._held]
            self._to_accept.clear()
            if accepted:
                return runners_pb2.AttachRequest(heartbeat=runners_pb2.Heartbeat(leases=accepted))
        if self._announced != self._capacity:
            self._announced = self._capacity
            return runners_pb2.AttachRequest(set_capacity=runners_pb2.SetCapacity(capacity=self._capacity))
        if self._replies:
            return runners_pb2.AttachRequest(command_reply=self._replies.popleft())
        if self._progress:
            return self._next_progress()
        return self._next_results() if self._to_send else None

    def _next_progress(self) -> runners_pb2.AttachRequest:
        key, progress = next(iter(self._progress.items()))
        held = self._held.get(key) or self._unreceipted[key].lease
        message = runners_pb2.Progress(lease=held, metadata_json=progress.metadata_json)
        progress.metadata_json = None
        room = LINES_MAX_BYTES
        while progress.lines and len(message.logs) < LINES_MAX - 1 and room > 0:
            line = progress.lines.popleft()
            self._lines_queued -= 1
            room -= LINE_OVERHEAD_BYTES + len(line.message) + len(line.meta_json)
            _add_line(message, line)
        if not progress.lines:
            del self._progress[key]
            if progress.dropped:
                said = f"{progress.dropped} log lines were dropped: they came faster than they could be sent"
                _add_line(message, Line(progress.dropped_at, "warn", said, "{}"))
        return runners_pb2.AttachRequest(progress=message)

    def _forget_progress(self, key: Key) -> None:
        progress = self._progress.pop(key, None)
        if progress is not None:
            self._lines_queued -= len(progress.lines)

    def _next_results(self) -> runners_pb2.AttachRequest | None:
        results: list[runners_pb2.Result] = []
        room = RESULTS_MAX_BYTES
        while self._to_send and len(results) < RESULTS_MAX and room > 0:
            result = self._unreceipted.get(self._to_send.popleft())
            if result is not None:
                results.append(result)
                room -= _size(result)
        return runners_pb2.AttachRequest(results=runners_pb2.Results(results=results)) if results else None


def key_of(lease: job_pb2.Lease) -> Key:
    """The attempt that a lease is for."""
    return Key(lease.job_id, lease.attempt)


def result_of(lease: job_pb2.Lease, outcome: Outcome, metadata_json: str | None) -> runners_pb2.Result:
    """An outcome as the contract spells it."""
    result = runners_pb2.Result(lease=lease, metadata_json=metadata_json)
    if outcome.kind == "completed":
        result.completed.result_json = outcome.said
    elif outcome.kind == "canceled":
        result.canceled.SetInParent()
    else:
        result.failed.error = outcome.said
        result.failed.stack_trace = outcome.stack_trace
        result.failed.permanent = outcome.permanent
        if outcome.retry_after is not None:
            result.failed.retry_after.FromNanoseconds(int(outcome.retry_after * 1e9))
    return result


def _size(result: runners_pb2.Result) -> int:
    """About what a result takes on the wire."""
    outcome = len(result.completed.result_json) if result.HasField("completed") else len(result.failed.stack_trace)
    return 128 + outcome + len(result.metadata_json)


_LOG_KINDS = {
    "debug": job_pb2.LOG_KIND_DEBUG,
    "info": job_pb2.LOG_KIND_INFO,
    "warn": job_pb2.LOG_KIND_WARN,
    "error": job_pb2.LOG_KIND_ERROR,
}


def _add_line(message: runners_pb2.Progress, line: Line) -> None:
    wire = message.logs.add(kind=_LOG_KINDS[line.kind], message=line.message, meta_json=line.meta_json)
    wire.at.FromNanoseconds(int(line.at * 1e9))
