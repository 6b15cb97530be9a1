"""A runner and a publisher that go on whatever happens to the nodes, as a good client does."""

import itertools
import queue
import random
import threading
import time

import grpc
import requests

from waiting import DEADLINE
from wire import Grpc, runners_pb2

RETRY_PAUSE = 0.05


class SteadyRunner:
    """Runs every job for a moment and completes it; comes back to any node with its session, leases and results."""

    def __init__(self, addresses, token, channel, runner_id, capacity=20, seconds=0.02):
        self.addresses, self.token, self.seconds = list(addresses), token, seconds
        self.hello = {"runner_id": runner_id, "channels": [channel], "capacity": capacity, "client": "steady/1"}
        self.session_id = ""
        # What runs, and what has ended without a receipt so far, by (job, attempt).
        self.running, self.ended = {}, {}
        # Every execution that began here.
        self.begun = []
        self.receipts = {}
        self.sessions = 0
        self.interrupts = []
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
            address = self.addresses[(attempt + hash(self.hello["runner_id"])) % len(self.addresses)]
            client = Grpc(address, self.token)
            try:
                self._session(client)
            except grpc.RpcError:
                self.leaving.wait(RETRY_PAUSE * random.uniform(0.5, 1.5))
            finally:
                client.close()

    def _session(self, client):
        outbox = queue.SimpleQueue()
        leases = [lease for lease, _ in (*self.running.values(), *self.ended.values())]
        hello = runners_pb2.Hello(**self.hello, session_id=self.session_id, leases=leases)
        outbox.put(runners_pb2.AttachRequest(hello=hello))
        stream = client.runners.Attach(iter(outbox.get, None))
        over = threading.Event()
        beats = threading.Thread(target=self._beat, args=(outbox, over), daemon=True)
        try:
            for answer in stream:
                self._hear(answer, outbox)
                if answer.HasField("welcome") and not beats.is_alive():
                    beats.start()
                if answer.HasField("go_away") or self.leaving.is_set():
                    return
        finally:
            over.set()
            outbox.put(None)
            stream.cancel()
            if beats.ident:
                beats.join()

    def _hear(self, answer, outbox):
        if answer.HasField("welcome"):
            self.session_id = answer.welcome.session_id
            self.sessions += 1
            for lease in answer.welcome.lost:
                self.running.pop((lease.job_id, lease.attempt), None)
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
        """Ends what has run long enough; names what it holds twice a second."""
        named = 0.0
        while not over.wait(0.005):
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


class SteadyPublishers:
    """Threads that publish at a rate, and try a refused or lost publish again on another node."""

    def __init__(self, nodes, token, channel, per_second=500, threads=16, keyed=False):
        self.nodes, self.token, self.channel, self.keyed = nodes, token, channel, keyed
        self.acknowledged = []
        # (from, to) of each publish that was not taken at once.
        self.troubles = []
        self.refusals = {}
        self.failures = []
        self.stopping = threading.Event()
        self.pause = threads / per_second
        self.threads = [threading.Thread(target=self._publish, args=(number,), daemon=True) for number in range(threads)]
        for thread in self.threads:
            thread.start()

    def _publish(self, number):
        sessions = [requests.Session() for _ in self.nodes]
        headers = {"Authorization": f"Bearer {self.token}"}
        turn = itertools.count(number)
        next_at = time.monotonic()
        while not self.stopping.is_set():
            body = {"func": "f", "payload": {}, "channel": self.channel}
            if self.keyed:
                body["idempotency_key"] = f"{self.channel}-{number}-{next(turn)}"
            self._insist(sessions, turn, body, headers)
            next_at = max(next_at + self.pause, time.monotonic() - 1)
            self.stopping.wait(max(0.0, next_at - time.monotonic()))

    def _insist(self, sessions, turn, body, headers):
        began = time.monotonic()
        tries = 0
        while True:
            node = next(turn) % len(self.nodes)
            try:
                reply = sessions[node].post(
                    f"http://{self.nodes[node].http}/api/jobs/publish", json=body, headers=headers, timeout=10
                )
                if reply.status_code == 200:
                    self.acknowledged.append(reply.json()["job_id"])
                    break
                self.refusals[reply.text] = self.refusals.get(reply.text, 0) + 1
            except requests.RequestException as error:
                self.refusals[type(error).__name__] = self.refusals.get(type(error).__name__, 0) + 1
            tries += 1
            if time.monotonic() - began > 60 or self.stopping.is_set() and time.monotonic() - began > 30:
                self.failures.append(body)
                return
            time.sleep(RETRY_PAUSE)
        if tries:
            self.troubles.append((began, time.monotonic()))

    def longest_trouble(self):
        """Seconds that the slowest publish needed that was not taken at once."""
        return max((end - start for start, end in self.troubles), default=0.0)

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(90)
