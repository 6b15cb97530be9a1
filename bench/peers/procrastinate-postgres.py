"""Procrastinate: done jobs are deleted, new ones heard of by LISTEN and NOTIFY."""

import asyncio
import logging
import os

import procrastinate
import psycopg

import hand

URL = os.environ["PEER_URL"]
# A worker fetches one job after the other, each in a transaction of its own: so several in each process.
WORKERS = 8
CONCURRENCY = 8
CONNECTIONS = 32


class Procrastinate:
    runners_per_processor = 2
    batches = True

    def __init__(self):
        self.job = lambda payload: None
        self.connection = None
        self.app = self.task = None

    def open(self, connector):
        self.app = procrastinate.App(connector=connector)

        async def run(payload):
            self.job(payload)

        self.task = self.app.task(name="run")(run)

    def prepare(self):
        self.publisher(1)
        self.app.schema_manager.apply_schema()

    def publisher(self, in_flight):
        self.open(procrastinate.SyncPsycopgConnector(conninfo=URL, min_size=in_flight, max_size=in_flight))
        self.app.open()
        self.connection = psycopg.connect(URL, autocommit=True)

    def single(self, payload):
        self.task.defer(payload=payload)

    def batch(self, payloads):
        self.task.batch_defer(*({"payload": payload} for payload in payloads))

    def left(self):
        return self.connection.execute("SELECT count(*) FROM procrastinate_jobs").fetchone()[0]

    def clear(self):
        self.connection.execute("TRUNCATE procrastinate_jobs CASCADE")

    def run(self, job):
        self.job = job
        self.open(procrastinate.PsycopgConnector(conninfo=URL, min_size=CONNECTIONS, max_size=CONNECTIONS))
        asyncio.run(self.work())

    async def work(self):
        async with self.app.open_async():
            options = {"concurrency": CONCURRENCY, "delete_jobs": "always", "install_signal_handlers": False}
            await asyncio.gather(*(self.app.run_worker_async(**options) for _ in range(WORKERS)))


if __name__ == "__main__":
    # It advises against an application in the main module, which nothing else imports here.
    logging.getLogger("procrastinate").setLevel(logging.ERROR)
    hand.serve(Procrastinate())
