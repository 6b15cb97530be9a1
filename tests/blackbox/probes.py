"""What a load balancer and a supervisor see of the nodes, all the time."""

import collections
import http.client
import threading
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

INTERVAL = 0.05
PATIENCE = 5

Sample = collections.namedtuple("Sample", "at serves lives")


class Probes:
    """Asks every node over and over whether it serves, by HTTP and by gRPC, and whether it lives."""

    def __init__(self, nodes):
        self.samples = [[] for _ in nodes]
        self.stopping = threading.Event()
        self.threads = [
            threading.Thread(target=self._probe, args=(node, samples), daemon=True)
            for node, samples in zip(nodes, self.samples)
        ]
        for thread in self.threads:
            thread.start()

    def _probe(self, node, samples):
        line = http.client.HTTPConnection(node.http, timeout=PATIENCE)
        with grpc.insecure_channel(node.grpc_address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            while not self.stopping.wait(INTERVAL):
                ready, lives = (self._answers(line, path) for path in ("/readyz", "/livez"))
                status = health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE).status
                serving = status == health_pb2.HealthCheckResponse.SERVING
                # The two change together; between them lies the change.
                if ready == serving:
                    samples.append(Sample(time.monotonic(), ready, lives))

    def _answers(self, line, path):
        line.request("GET", path)
        reply = line.getresponse()
        reply.read()
        return reply.status == 200

    def seconds_until(self, serves, since, patience):
        """How long after `since` the last of the nodes said that it serves, or that it does not."""
        end = since + patience
        while True:
            turns = [self._first(samples, serves, since) for samples in self.samples]
            if None not in turns:
                return max(turns) - since
            assert time.monotonic() < end + INTERVAL, f"not within {patience} s: every node says that serves={serves}"
            time.sleep(INTERVAL / 5)

    def _first(self, samples, serves, since):
        return next((sample.at for sample in list(samples) if sample.at >= since and sample.serves == serves), None)

    def stop(self):
        """Ends the watch; every node must have lived all the time."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(PATIENCE * 3)
        assert all(samples for samples in self.samples), "a probe had no answer"
        assert all(sample.lives for samples in self.samples for sample in samples), "a node said that it does not live"
        slowest = max(later.at - earlier.at for samples in self.samples for earlier, later in zip(samples, samples[1:]))
        assert slowest < PATIENCE, f"a probe was without an answer for {slowest:.1f} s"
