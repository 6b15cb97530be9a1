"""Dramatiq, with its usual middleware; it always acknowledges after the job."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

import hand

URL = os.environ["PEER_URL"]
# As its command line has it, in each process.
THREADS = 8


class Dramatiq:
    runners_per_processor = 1
    batches = False

    def __init__(self):
        self.broker = RedisBroker(url=URL)
        dramatiq.set_broker(self.broker)
        self.job = lambda payload: None
        self.actor = dramatiq.actor(lambda payload: self.job(payload), actor_name="run", queue_name="bench")

    def prepare(self):
        pass

    def publisher(self, in_flight):
        pass

    def single(self, payload):
        self.actor.send(payload)

    def left(self):
        # Messages stay there until they are acknowledged.
        return self.broker.client.hlen("dramatiq:bench.msgs")

    def clear(self):
        self.broker.flush("bench")

    def run(self, job):
        self.job = job
        dramatiq.Worker(self.broker, worker_threads=THREADS).start()


if __name__ == "__main__":
    hand.serve(Dramatiq())
