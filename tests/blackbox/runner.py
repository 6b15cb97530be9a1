"""A runner with nothing but gRPC: what any language needs in order to take part."""

import itertools
import json
import queue
import threading
import time

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from waiting import DEADLINE
from wire import Grpc, job_pb2, runners_pb2

_serial = itertools.count(1)


def duration(seconds):
    value = Duration()
    value.FromNanoseconds(int(seconds * 1e9))
    return value


class Runner:
    """One session. Accepts what it is assigned, heartbeats, and does only what a test tells it to."""

    def __init__(self, address, token, channels, capacity=1, runner_id=None, session_id="", leases=(), accepts=True,
                 replies=True, follows_commands=True):
        self.runner_id = runner_id or f"test-{next(_serial)}-{time.monotonic_ns() % 1_000_000}"
        self.channels, self.capacity, self.token = list(channels), capacity, token
        self.accepts, self.replies, self.follows_commands = accepts, replies, follows_commands
        self.held = {(lease.job_id, lease.attempt): lease for lease in leases}
        self.client = Grpc(address, token)
        self.beating = True
        self.welcome = None
        self.error = None
        self.ended = threading.Event()
        self.most_held = 0
        self._seen = {"assignment": [], "receipt": [], "interrupt": [], "command": [], "go_away": []}
        self._changed = threading.Condition()
        self._outbox = queue.SimpleQueue()
        hello = runners_pb2.Hello(
            runner_id=self.runner_id,
            channels=self.channels,
            capacity=capacity,
            hostname="test-host",
            client="blackbox/1",
            session_id=session_id,
            leases=list(leases),
        )
        self.send(hello=hello)
        self._stream = self.client.runners.Attach(iter(self._outbox.get, None))
        threading.Thread(target=self._read, daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: self.welcome or self.ended.is_set(), DEADLINE)
        if self.welcome is None:
            self.client.close()
            raise self.error or AssertionError("no Welcome")
        for lease in self.welcome.lost:
            self.held.pop((lease.job_id, lease.attempt), None)
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, **message):
        self._outbox.put(runners_pb2.AttachRequest(**message))

    def _read(self):
        try:
            for answer in self._stream:
                with self._changed:
                    self._take_in(answer)
                    self._changed.notify_all()
        except grpc.RpcError as error:
            self.error = error
        finally:
            with self._changed:
                self.ended.set()
                self._changed.notify_all()

    def _take_in(self, answer):
        kind = answer.WhichOneof("message")
        if kind == "welcome":
            self.welcome = answer.welcome
        elif kind == "assignments":
            for assignment in answer.assignments.assignments:
                self._seen["assignment"].append(assignment)
                if self.accepts:
                    self.held[(assignment.lease.job_id, assignment.lease.attempt)] = assignment.lease
            self.most_held = max(self.most_held, len(self.held))
            if self.accepts:
                self.beat()
        elif kind == "results_accepted":
            self._seen["receipt"].extend(answer.results_accepted.receipts)
        elif kind == "interrupt":
            self._seen["interrupt"].append(answer.interrupt)
        elif kind == "command":
            self._seen["command"].append(answer.command)
            self._obey(answer.command)
        elif kind == "go_away":
            self._seen["go_away"].append(answer.go_away)

    def _obey(self, command):
        if self.follows_commands and command.kind == runners_pb2.COMMAND_KIND_PAUSE:
            self.set_capacity(0)
        if self.follows_commands and command.kind == runners_pb2.COMMAND_KIND_RESUME:
            self.set_capacity(self.capacity)
        if self.replies:
            data = json.dumps({"said_by": self.runner_id})
            self.send(command_reply=runners_pb2.CommandReply(command_id=command.command_id, data_json=data))

    def _beat(self):
        interval = self.welcome.heartbeat_interval.ToMilliseconds() / 1000
        while not self.ended.wait(interval):
            with self._changed:
                if self.beating:
                    self.beat()

    def beat(self):
        """Names every lease that it holds."""
        self.send(heartbeat=runners_pb2.Heartbeat(leases=list(self.held.values())))

    def fall_silent(self):
        """Names its leases once more, and sends no heartbeat after that."""
        with self._changed:
            self.beating = False
            self.beat()

    def _wait(self, kind, matches, timeout):
        seen = self._seen[kind]

        def find():
            return next((item for item in seen if matches(item)), None)

        with self._changed:
            self._changed.wait_for(lambda: find() is not None or self.ended.is_set(), timeout)
            found = find()
            assert found is not None, (
                f"runner {self.runner_id} saw no {kind} within {timeout} s; "
                f"it saw {[(k, len(v)) for k, v in self._seen.items()]}, stream error {self.error!r}"
            )
            seen.remove(found)
            return found

    def next_assignment(self, timeout=DEADLINE, job_id=None):
        return self._wait("assignment", lambda item: job_id in (None, item.lease.job_id), timeout)

    def idle(self):
        """No assignment waits to be looked at."""
        with self._changed:
            return not self._seen["assignment"]

    def interrupt(self, assignment, timeout=DEADLINE):
        return self._wait("interrupt", lambda item: item.lease == assignment.lease, timeout)

    def command(self, kind, timeout=DEADLINE):
        return self._wait("command", lambda item: item.kind == kind, timeout)

    def go_away(self, timeout=DEADLINE):
        return self._wait("go_away", lambda _: True, timeout)

    def report(self, assignment, metadata=None, **outcome):
        result = runners_pb2.Result(lease=assignment.lease, metadata_json=metadata, **outcome)
        with self._changed:
            self.held.pop((assignment.lease.job_id, assignment.lease.attempt), None)
        self.send(results=runners_pb2.Results(results=[result]))

    def receipt(self, assignment, timeout=DEADLINE):
        """Whether the result that was sent counted."""
        return self._wait("receipt", lambda item: item.lease == assignment.lease, timeout).accepted

    def complete(self, assignment, result="null", metadata=None):
        self.report(assignment, metadata, completed=runners_pb2.Completed(result_json=result))
        return self.receipt(assignment)

    def fail(self, assignment, error="it broke", stack_trace="", permanent=False, retry_after=None, metadata=None):
        failed = runners_pb2.Failed(error=error, stack_trace=stack_trace, permanent=permanent)
        if retry_after is not None:
            failed.retry_after.CopyFrom(duration(retry_after))
        self.report(assignment, metadata, failed=failed)
        return self.receipt(assignment)

    def canceled(self, assignment):
        self.report(assignment, canceled=runners_pb2.Canceled())
        return self.receipt(assignment)

    def release(self, assignment):
        self.report(assignment, released=runners_pb2.Released())
        return self.receipt(assignment)

    def progress(self, assignment, metadata=None, logs=()):
        at = Timestamp()
        at.GetCurrentTime()
        lines = [runners_pb2.LogLine(at=at, kind=job_pb2.LOG_KIND_INFO, message=line, meta_json="{}") for line in logs]
        self.send(progress=runners_pb2.Progress(lease=assignment.lease, metadata_json=metadata, logs=lines))

    def set_capacity(self, capacity):
        self.send(set_capacity=runners_pb2.SetCapacity(capacity=capacity))

    def close(self):
        """Says goodbye: ends its side of the stream, and waits for the service to end the other."""
        self._outbox.put(None)
        if not self.ended.wait(5):
            self._stream.cancel()
            self.ended.wait(5)
        self.client.close()

    def drop(self):
        """Goes without a goodbye, as a process that was killed."""
        self._stream.cancel()
        self.ended.wait(5)
        self._outbox.put(None)
        self.client.close()
