"""The runner's side of the protocol in Python, on nothing but grpcio: docs/writing-a-client.md, written out."""

import asyncio
import contextlib
import json
import os
import platform
import random
import signal
import sys
import threading
import time
from functools import partial

import grpc
from errand.v1 import job_pb2, runners_pb2_grpc
from errand.v1 import runners_pb2 as pb

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
OPTIONS += [("grpc.keepalive_time_ms", 5000), ("grpc.keepalive_timeout_ms", 5000)]
OPTIONS += [("grpc.http2.ping_timeout_ms", 5000), ("grpc.http2.max_pings_without_data", 0)]
FINAL = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT)
WELCOME_SECONDS, FLUSH_SECONDS, RELEASE_SECONDS, CLOSE_SECONDS, DELAY_MAX_SECONDS, SPENT_MAX = 5, 15, 5, 1, 5, 4096
GONE = (pb.INTERRUPT_REASON_TIMED_OUT, pb.INTERRUPT_REASON_LEASE_LOST)


class Runner:
    """Everything happens on one event loop. `execute` begins to run a job, elsewhere, and returns at once."""

    def __init__(self, execute, servers, token, channels, capacity, credentials):
        self.execute, self.servers, self.token, self.credentials = execute, servers, token, credentials
        self.channels, self.capacity = channels, capacity
        self.runner_id, self.session_id = f"{platform.node()}-{os.getpid()}"[-64:], ""
        # By lease. What is held: jobs that run, and results without a receipt. And results that were accepted.
        self.jobs, self.owed, self.spent = {}, {}, {}
        self.outbox = None  # For the open stream: messages, and what to do once each is written.
        self.paused, self.leaving, self.leave_by = False, 0, float("inf")

    async def run(self):
        """Keeps a stream open, and opens another one when it breaks."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.leave)
        server = failures = 0
        while not self.is_over():
            begin = time.monotonic()
            try:
                why = await self.attach(self.servers[server % len(self.servers)])
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.TimeoutError) as error:
                why = error.details() if isinstance(error, grpc.RpcError) else "the stream hangs"
                if not self.session_id and isinstance(error, grpc.RpcError) and error.code() in FINAL:
                    sys.exit(f"the service refuses this runner: {why}")
            served = time.monotonic() - begin > 1 and self.outbox is not None
            failures, server, self.outbox = failures * (not served) + 1, server + (not served or why == "go_away"), None
            if not self.is_over():
                print(f"no connection, trying again: {why}", file=sys.stderr, flush=True)
                delay = min(DELAY_MAX_SECONDS, 2**failures / 40) if failures > 1 else 0
                await asyncio.sleep(random.uniform(0.5, 1) * delay)

    async def attach(self, url):
        scheme, _, address = url.rpartition("://")
        secure = grpc.aio.secure_channel(address, self.credentials, OPTIONS) if scheme == "https" else None
        async with secure or grpc.aio.insecure_channel(address, OPTIONS) as channel:
            stream = runners_pb2_grpc.RunnersStub(channel).Attach(metadata=[("authorization", f"Bearer {self.token}")])
            hello = dict(runner_id=self.runner_id, session_id=self.session_id, leases=self.leases(), client="minimal/1")
            hello |= dict(channels=self.channels, capacity=self.announced(), hostname=platform.node())
            with contextlib.suppress(asyncio.InvalidStateError):  # Reading tells why.
                await asyncio.wait_for(stream.write(pb.AttachRequest(hello=hello)), WELCOME_SECONDS)
            first = await asyncio.wait_for(stream.read(), WELCOME_SECONDS)
            if first is grpc.aio.EOF or not first.HasField("welcome"):
                return "the server does not say Welcome"
            self.session_id, self.outbox = first.welcome.session_id, asyncio.Queue()
            for lease in first.welcome.lost:
                self.lose(key_of(lease))
            for result in self.owed.values():
                self.say(results=pb.Results(results=[result]))
            interval = first.welcome.heartbeat_interval.ToMilliseconds() / 1000 or 5
            tasks = [asyncio.create_task(work) for work in (self.read(stream), self.write(stream), self.beat(interval))]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                return done.pop().result()
            finally:
                for task in tasks:
                    task.cancel()

    async def beat(self, interval):
        while True:
            self.say(heartbeat=pb.Heartbeat(leases=self.leases()))
            await asyncio.sleep(interval)

    async def write(self, stream):
        while not self.is_over() or not self.outbox.empty():
            message, then = await self.outbox.get()
            await stream.write(message)
            then()
        await stream.done_writing()
        await asyncio.sleep(CLOSE_SECONDS)  # The service closes its half when it has read everything.

    async def read(self, stream):
        while (message := await stream.read()) is not grpc.aio.EOF:
            if (kind := message.WhichOneof("message")) == "go_away":
                return kind
            if hasattr(self, f"on_{kind}"):
                getattr(self, f"on_{kind}")(getattr(message, kind))
            if self.is_over():
                self.say(heartbeat=pb.Heartbeat())  # Wakes the writer.
        return "the server closed the stream"

    def say(self, then=lambda: None, **message):
        if self.outbox is not None:
            self.outbox.put_nowait((pb.AttachRequest(**message), then))

    def on_assignments(self, assignments):
        new, starts = [], []
        for assignment in assignments.assignments:
            key = key_of(assignment.lease)
            if key in self.jobs or key in self.owed or key in self.spent:
                continue  # A repetition.
            if len(self.jobs) >= self.announced():
                self.owe(key, pb.Result(released=pb.Released()))
                continue
            self.jobs[key] = stop = threading.Event()
            new.append(assignment.lease)
            starts.append((assignment.job, stop, partial(self.progress, key), partial(self.ended, key, stop)))
        if new:
            self.say(lambda: [self.execute(*start) for start in starts], heartbeat=pb.Heartbeat(leases=new))

    def progress(self, key, said):
        if key in self.jobs:
            self.say(progress=pb.Progress(lease=lease_of(key), **said))

    def ended(self, key, stop, result):
        if self.jobs.get(key) is stop:
            del self.jobs[key]
            self.owe(key, result)

    def owe(self, key, result):
        result.lease.CopyFrom(lease_of(key))
        self.owed[key] = result
        self.say(results=pb.Results(results=[result]))

    def on_results_accepted(self, accepted):
        for receipt in accepted.receipts:
            result = self.owed.pop(key_of(receipt.lease), None)
            if result and receipt.accepted and not result.HasField("released"):
                self.spent[key_of(receipt.lease)] = None
                if len(self.spent) > SPENT_MAX:
                    del self.spent[next(iter(self.spent))]

    def on_interrupt(self, interrupt):
        if interrupt.reason in GONE:
            self.lose(key_of(interrupt.lease))
        elif stop := self.jobs.get(key_of(interrupt.lease)):
            stop.set()

    def lose(self, key):
        self.owed.pop(key, None)
        if stop := self.jobs.pop(key, None):
            stop.set()

    def on_command(self, command):
        error = "" if command.kind in pb.CommandKind.values()[1:] else "this runner does not know that command"
        if command.kind in (pb.COMMAND_KIND_PAUSE, pb.COMMAND_KIND_RESUME):
            self.paused = command.kind == pb.COMMAND_KIND_PAUSE
            self.say(set_capacity=pb.SetCapacity(capacity=self.announced()))
        data = json.dumps(dict(capacity=self.capacity, running=len(self.jobs), paused=self.paused, pid=os.getpid()))
        self.say(command_reply=pb.CommandReply(command_id=command.command_id, data_json=data, error=error))
        if command.kind == pb.COMMAND_KIND_SHUTDOWN:
            self.leave(now=not command.graceful)

    def leave(self, now=False):
        """Finishes what runs, and leaves. The second time, or now, hands back what runs."""
        self.leaving += 2 if now else 1
        self.say(set_capacity=pb.SetCapacity(capacity=0))
        for key in [*self.jobs] if self.leaving > 1 else []:
            self.lose(key)
            self.owe(key, pb.Result(released=pb.Released()))

    def is_over(self):
        if self.jobs or not self.leaving:
            return False
        self.leave_by = min(self.leave_by, time.monotonic() + (FLUSH_SECONDS if self.leaving == 1 else RELEASE_SECONDS))
        return not self.owed or time.monotonic() >= self.leave_by

    def announced(self):
        return 0 if self.paused or self.leaving else self.capacity

    def leases(self):
        return [lease_of(key) for key in (*self.jobs, *self.owed)]


def key_of(lease):
    return lease.job_id, lease.attempt


def lease_of(key):
    return job_pb2.Lease(job_id=key[0], attempt=key[1])
