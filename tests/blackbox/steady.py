"""A runner and a publisher that go on whatever happens to the nodes, as a good client does."""

import collections
import http.client
import itertools
import json
import queue
import random
import select
import threading
import time

import grpc

from waiting import DEADLINE
from wire import Grpc, runners_pb2

RETRY_PAUSE = 0.05
# Longer than the service takes to say that it cannot tell.
PATIENCE = 30


class SteadyRunner:
    """Runs every job for a moment and completes it; comes back to any node with its session, leases and results.

    `first` is the number of the node that it attaches to first; it goes on to the next one whenever it has to.
    """

    def __init__(self, addresses, token, channel, runner_id, first=0, capacity=20, seconds=0.02):
        self.addresses, self.token, self.seconds, self.first = addresses, token, seconds, first
        self.hello = {"runner_id": runner_id, "channels": [channel], "capacity": capacity, "client": "steady/1"}
        self.session_id = ""
        # What runs, and what has ended without a receipt so far, by (job, attempt).
        self.running, self.ended = {}, {}
        # Every execution that began here.
        self.begun = []
        self.receipts = {}
        # The number of the node of each session, in order.
        self.sessions = []
        # What ran here, and was taken from it while it was away.
        self.lost = []
        self.interrupts = []
        # Seconds from the end of each session until the next one began, and why one did not begin or broke.
        self.away, self.troubles = [], collections.Counter()
        self.left_at = None
        self.leaving = threading.Event()
        self.thread = threading.Thread(target=self._live, daemon=True)
        self.thread.start()

    def leave(self):
        self.leaving.set()
        self.thread.join(DEADLINE)

    def _live(self):
        for attempt in itertools.count():
            if self.leaving.is_set():
                return
            node = (attempt + self.first) % len(self.addresses)
            client = Grpc(self.addresses[node], self.token)
            try:
                self._session(client, node)
            except grpc.RpcError as error:
                self.troubles[error.details()] += 1
                self.leaving.wait(RETRY_PAUSE * random.uniform(0.5, 1.5))
            finally:
                client.close()

    def _session(self, client, node):
        outbox = queue.SimpleQueue()
        leases = [lease for lease, _ in (*self.running.values(), *self.ended.values())]
        hello = runners_pb2.Hello(**self.hello, session_id=self.session_id, leases=leases)
        outbox.put(runners_pb2.AttachRequest(hello=hello))
        stream = client.runners.Attach(iter(outbox.get, None))
        over = threading.Event()
        beats = threading.Thread(target=self._beat, args=(outbox, over), daemon=True)
        try:
            for answer in stream:
                if answer.HasField("welcome"):
                    if self.left_at:
                        self.away.append(time.monotonic() - self.left_at)
                    self.sessions.append(node)
                self._hear(answer, outbox)
                if answer.HasField("welcome") and not beats.is_alive():
                    beats.start()
                if answer.HasField("go_away") or self.leaving.is_set():
                    return
        finally:
            # Tries that reach no session do not count.
            if beats.ident:
                self.left_at = time.monotonic()
            over.set()
            outbox.put(None)
            stream.cancel()
            if beats.ident:
                beats.join()

    def _hear(self, answer, outbox):
        if answer.HasField("welcome"):
            self.session_id = answer.welcome.session_id
            for lease in answer.welcome.lost:
                key = (lease.job_id, lease.attempt)
                if self.running.pop(key, None):
                    self.lost.append(key)
            self._send(outbox, list(self.ended.values()))
        for assignment in answer.assignments.assignments:
            lease = assignment.lease
            key = (lease.job_id, lease.attempt)
            if key not in self.running and key not in self.ended:
                self.begun.append(key)
                self.running[key] = (lease, time.monotonic() + self.seconds)
        if answer.HasField("assignments"):
            self._name_leases(outbox)
        for receipt in answer.results_accepted.receipts:
            key = (receipt.lease.job_id, receipt.lease.attempt)
            self.ended.pop(key, None)
            self.receipts[key] = receipt.accepted
        if answer.HasField("interrupt"):
            lease = answer.interrupt.lease
            self.interrupts.append((lease.job_id, lease.attempt, answer.interrupt.reason))
            self.running.pop((lease.job_id, lease.attempt), None)

    def _name_leases(self, outbox):
        leases = [lease for lease, _ in (*list(self.running.values()), *list(self.ended.values()))]
        outbox.put(runners_pb2.AttachRequest(heartbeat=runners_pb2.Heartbeat(leases=leases)))

    def _send(self, outbox, ended):
        results = [runners_pb2.Result(lease=lease, completed=runners_pb2.Completed(result_json="null")) for lease, _ in ended]
        if results:
            outbox.put(runners_pb2.AttachRequest(results=runners_pb2.Results(results=results)))

    def _beat(self, outbox, over):
        """Ends what has run long enough; names what it holds twice a second; says goodbye."""
        named = 0.0
        while not over.wait(0.005):
            if self.leaving.is_set():
                outbox.put(None)
                return
            now = time.monotonic()
            due = [key for key, (_, until) in list(self.running.items()) if until <= now]
            ended = []
            for key in due:
                entry = self.running.pop(key, None)
                if entry:
                    self.ended[key] = entry
                    ended.append(entry)
            self._send(outbox, ended)
            if now - named >= 0.5:
                named = now
                self._name_leases(outbox)


class Line:
    """A kept connection for publishes, far cheaper than `requests`: the publishers are to load the nodes and not this process."""

    def __init__(self, node, token):
        self.node = node
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self.address = self.connection = None

    def publish(self, body):
        """The status code of the answer and its body; an error where there is none."""
        if self.connection is None or self.address != self.node.http or self._was_closed():
            self._hang_up()
            self.address = self.node.http
            self.connection = http.client.HTTPConnection(self.address, timeout=PATIENCE)
        try:
            self.connection.request("POST", "/api/jobs/publish", body, self.headers)
            reply = self.connection.getresponse()
            return reply.status, reply.read().decode()
        except (OSError, http.client.HTTPException):
            self._hang_up()
            raise

    def _was_closed(self):
        """An idle connection has nothing to be read but its end."""
        socket = self.connection.sock
        return socket is None or bool(select.select([socket], [], [], 0)[0])

    def _hang_up(self):
        if self.connection:
            self.connection.close()
        self.connection = None


class SteadyPublishers:
    """Threads that publish at a rate, and try a refused or lost publish again on another node."""

    def __init__(self, nodes, token, channel, per_second=500, threads=16):
        self.nodes, self.token, self.channel = nodes, token, channel
        self.acknowledged = []
        # (from, to, tries that failed) of each publish that was not taken at once.
        self.troubles = []
        # How often each status code with its text, or each error, was the answer.
        self.refusals = {}
        self.failures = []
        self.stopping = threading.Event()
        self.began = time.monotonic()
        self.pause = threads / per_second
        self.threads = [threading.Thread(target=self._publish, args=(number,), daemon=True) for number in range(threads)]
        for thread in self.threads:
            thread.start()

    def _publish(self, number):
        lines = [Line(node, self.token) for node in self.nodes]
        turn = itertools.count(number)
        body = json.dumps({"func": "f", "payload": {}, "channel": self.channel})
        next_at = time.monotonic()
        while not self.stopping.is_set():
            self._insist(lines, turn, body)
            next_at = max(next_at + self.pause, time.monotonic() - 1)
            self.stopping.wait(max(0.0, next_at - time.monotonic()))

    def _insist(self, lines, turn, body):
        began = time.monotonic()
        for tries in itertools.count():
            try:
                code, text = lines[next(turn) % len(lines)].publish(body)
                answer = (code, text)
            except (OSError, http.client.HTTPException) as error:
                code, answer = None, type(error).__name__
            if code == 200:
                self.acknowledged.append(json.loads(text)["job_id"])
                if tries:
                    self.troubles.append((began, time.monotonic(), tries))
                return
            self.refusals[answer] = self.refusals.get(answer, 0) + 1
            if time.monotonic() - began > 60 or self.stopping.is_set() and time.monotonic() - began > 30:
                self.failures.append(body)
                return
            time.sleep(RETRY_PAUSE)

    def longest_trouble(self):
        """Seconds that the slowest publish needed that was not taken at once."""
        return max((end - start for start, end, _ in self.troubles), default=0.0)

    def most_tries(self):
        """How often the unluckiest publish failed before it was taken."""
        return max((tries for _, _, tries in self.troubles), default=0)

    def rate(self):
        """Acknowledged publishes a second so far."""
        return len(self.acknowledged) / (time.monotonic() - self.began)

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(90)
