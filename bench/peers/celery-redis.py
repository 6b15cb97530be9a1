"""Celery: acknowledged after the job, as whatever must not be lost is; no results kept."""

import logging
import os

import celery
import redis

import hand

URL = os.environ["PEER_URL"]
# Threads in each process; jobs that compute nothing gain nothing from more.
CONCURRENCY = 8
# Jobs that a process holds for each thread.
PREFETCH = 16


class Celery:
    # A process takes one message after the other from Redis.
    runners_per_processor = 4
    batches = False

    def __init__(self):
        self.app = celery.Celery("bench", broker=URL)
        self.app.conf.update(
            task_acks_late=True,
            task_ignore_result=True,
            worker_prefetch_multiplier=PREFETCH,
            broker_connection_retry_on_startup=True,
            worker_hijack_root_logger=False,
        )
        self.job = lambda payload: None

        @self.app.task(name="run")
        def run(payload):
            self.job(payload)

        self.task = run
        self.redis = redis.Redis.from_url(URL)

    def prepare(self):
        pass

    def publisher(self, in_flight):
        self.app.conf.broker_pool_limit = in_flight

    def single(self, payload):
        self.task.delay(payload)

    def left(self):
        return self.redis.llen("celery") + self.redis.hlen("unacked")

    def clear(self):
        self.app.control.purge()

    def run(self, job):
        self.job = job
        logging.getLogger("celery").setLevel(logging.ERROR)
        self.app.Worker(pool="threads", concurrency=CONCURRENCY, without_gossip=True, without_mingle=True).start()


if __name__ == "__main__":
    hand.serve(Celery())
