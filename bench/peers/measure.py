#!/usr/bin/env python3
"""Measures one peer once, as `errand bench` measures a service; bench/peers/run starts it beside fresh servers.

Publishers and runners are processes of the peer's own language, as many of each as the machine has processors, so that a
peer whose process runs on one processor only is not measured by that; a peer whose process takes jobs one after the other
asks for more that run them. A job counts as published when the peer's call has
returned, and a queue as done when the peer's own count of what is left, be it queued or held, is zero.

Prints one JSON object. Deliberately absent: the servers' settings but Redis' appendfsync, and any judgement of figures.
"""

import argparse
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import time

# As in `errand bench`.
SINGLES_IN_FLIGHT = 64
BATCH = 100
BATCH_PUBLISHERS = 16
PACE = 1_000
WARM_UP = 0.5
# Before the first part.
WARM_UP_PUBLISHES = 1
# {"filler":"..."} is then 100 bytes.
FILLER = "x" * 87

# Until a process answers a command; filling a queue takes long with peers that have no batches.
PATIENCE = 300
# How long jobs may stay undone before the run is given up.
STALL = 60
POLL = 0.005
# Paced publishers begin together, when all have read their command.
LEAD = 0.3


class Failure(Exception):
    """A sentence for whoever ran this."""


class Hand:
    """A process of the peer."""

    def __init__(self, command, environment):
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        os.set_blocking(self.child.stdout.fileno(), False)
        self.rest = b""
        self.answers = []
        self.done = self.first = 0

    def tell(self, do, **more):
        self.child.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")
        self.child.stdin.flush()

    def read(self):
        """Takes what it has said so far; false where it has ended."""
        data = self.child.stdout.read()
        if data == b"":
            return False
        *lines, self.rest = (self.rest + (data or b"")).split(b"\n")
        for line in map(json.loads, lines):
            if "done" in line:
                self.done, self.first = line["done"], line["first"]
            else:
                self.answers.append(line)
        return True

    def answer(self):
        end = time.monotonic() + PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(self.child.stdout, selectors.EVENT_READ)
            while not self.answers:
                if not selector.select(max(0, end - time.monotonic())):
                    raise Failure(f"no answer within {PATIENCE} s")
                if not self.read():
                    raise Failure("a process of the peer has ended")
        answer = self.answers.pop(0)
        if "failed" in answer:
            raise Failure(answer["failed"])
        return answer["answer"]

    def ask(self, do, **more):
        self.tell(do, **more)
        return self.answer()

    def stop(self):
        self.child.stdin.close()
        try:
            self.child.wait(5)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


class Run:
    """A run under way."""

    def __init__(self, command, url, processes, seconds, drain_jobs):
        self.processes = processes
        self.seconds = seconds
        self.drain_jobs = drain_jobs
        self.runner_processes = processes
        environment = {**os.environ, "PEER_URL": url, "PEER_IN_FLIGHT": str(max(1, SINGLES_IN_FLIGHT // processes))}
        # Not to be told of newer versions, and not to keep compiled files among the sources.
        environment.update(PYTHONDONTWRITEBYTECODE="1", NO_UPDATE_NOTIFIER="1")
        self.start = lambda: Hand(command, environment)
        self.publishers = []
        self.runners = []

    def measure(self):
        try:
            return self.figures()
        finally:
            for hand in self.publishers + self.runners:
                hand.stop()

    def figures(self):
        first = self.start()
        self.publishers.append(first)
        first.ask("prepare")
        self.publishers += [self.start() for _ in range(self.processes - 1)]
        connected = [hand.ask("connect") for hand in self.publishers][0]
        batches = connected["batches"]
        self.runner_processes = self.processes * connected["runners_per_processor"]
        # Connections open, and code is compiled, with the first publishes.
        self.publish("single", seconds=WARM_UP_PUBLISHES)
        self.publishers[0].ask("clear")
        figures = {"enqueue_single_per_s": self.enqueue("single"), "enqueue_batch_per_s": None}
        if batches:
            figures["enqueue_batch_per_s"] = self.enqueue("batch")
        figures["drain_per_s"] = self.drain("batch" if batches else "single")
        figures["end_to_end_per_s"] = self.end_to_end()
        figures["latency_ms"] = self.latency()
        return figures

    def publish(self, how, **until):
        """The jobs that all publishers published, and when the first began and the last ended, in microseconds."""
        in_flight = BATCH_PUBLISHERS if how == "batch" else SINGLES_IN_FLIGHT
        more = {"how": how, "in_flight": max(1, in_flight // self.processes), "filler": FILLER, "batch": BATCH, **until}
        for hand in self.publishers:
            hand.tell("publish", **more)
        answers = [hand.answer() for hand in self.publishers]
        return sum(answer["jobs"] for answer in answers), min(a["began"] for a in answers), max(a["ended"] for a in answers)

    def enqueue(self, how):
        jobs, began, ended = self.publish(how, seconds=self.seconds)
        self.publishers[0].ask("clear")
        return rate(f"enqueue, {how}", jobs, began, ended)

    def drain(self, how):
        share = self.drain_jobs // self.processes
        jobs, _, _ = self.publish(how, jobs=share)
        self.runners = [self.start() for _ in range(self.runner_processes)]
        for hand in self.runners:
            hand.tell("run")
        ended = self.until(jobs)
        # The way from a process to its first job is none of the peer's work on jobs.
        return rate("drain", jobs, min(hand.first for hand in self.runners if hand.first), ended)

    def end_to_end(self):
        self.again()
        jobs, began, _ = self.publish("single", seconds=self.seconds)
        return rate("end to end", jobs, began, self.until(jobs))

    def latency(self):
        self.again()
        gap = 1_000_000 // PACE
        begin = int((time.monotonic() + LEAD + WARM_UP) * 1e6)
        each = {"jobs": int(PACE * self.seconds) // self.processes, "warm_ups": int(PACE * WARM_UP) // self.processes}
        for number, hand in enumerate(self.publishers):
            hand.tell("pace", begin=begin, gap=gap * self.processes, first=gap * number, **each)
        jobs = sum(hand.answer()["jobs"] for hand in self.publishers)
        self.until(jobs)
        latencies = sorted(micros for hand in self.runners for micros in hand.ask("latencies"))
        at = lambda share: latencies[min(len(latencies) - 1, int(share * len(latencies)))] / 1000
        figures = {"p50": at(0.5), "p99": at(0.99), "max": at(1)}
        print("latency at %d/s: %s" % (PACE, figures), file=sys.stderr)
        return figures

    def again(self):
        for hand in self.runners:
            hand.ask("again")
            hand.done = hand.first = 0

    def until(self, jobs):
        """Waits until all are done and none is left; tells when that was."""
        stalled, before = time.monotonic() + STALL, 0
        while (done := self.done()) < jobs or self.publishers[0].ask("left") > 0:
            if done > before:
                stalled, before = time.monotonic() + STALL, done
            if time.monotonic() > stalled:
                raise Failure(f"{done} of {jobs} jobs are done, and none more for {STALL} s")
            time.sleep(POLL)
        return time.monotonic_ns() // 1000

    def done(self):
        for hand in self.runners:
            if not hand.read():
                raise Failure("a process that runs jobs has ended")
            for answer in hand.answers:
                if "failed" in answer:
                    raise Failure(answer["failed"])
            # The answer to "run" is of no interest: the jobs tell.
            hand.answers.clear()
        return sum(hand.done for hand in self.runners)


def rate(name, jobs, began, ended):
    per_s = round(jobs * 1e6 / (ended - began), 1)
    print(f"{name}: {per_s:.0f} jobs/s ({jobs} jobs)", file=sys.stderr)
    return per_s


def redis_asked(url, *words):
    """The answer of Redis to one command."""
    address = re.fullmatch(r"redis://([^:]+):(\d+)", url)
    with socket.create_connection((address[1], int(address[2])), timeout=10) as connection:
        connection.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words))
        reader = connection.makefile("rb")
        answer = reader.readline()
        if answer.startswith(b"$"):
            answer = reader.read(int(answer[1:]))
    if answer.startswith(b"-"):
        raise Failure(f"Redis refuses {' '.join(words)}: {answer.decode()}")
    return answer.decode()


def make_durable(url, appendfsync):
    """Returns once every write goes to the append-only file."""
    redis_asked(url, "CONFIG", "SET", "appendfsync", appendfsync)
    redis_asked(url, "CONFIG", "SET", "appendonly", "yes")
    end = time.monotonic() + STALL
    while time.monotonic() < end:
        state = redis_asked(url, "INFO", "persistence")
        if "aof_enabled:1" in state and "aof_rewrite_in_progress:0" in state and "aof_rewrite_scheduled:0" in state:
            return
        time.sleep(POLL)
    raise Failure("Redis does not get its append-only file ready")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", choices=["postgres", "redis"], required=True)
    parser.add_argument("--appendfsync", choices=["always", "everysec"], default="always")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--drain-jobs", type=int, required=True)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    url = os.environ[f"ERRAND_TEST_{given.server.upper()}_URL"]
    try:
        if given.server == "redis":
            make_durable(url, given.appendfsync)
        print(json.dumps(Run(given.command, url, given.processes, given.seconds, given.drain_jobs).measure()))
    except (Failure, BrokenPipeError) as failure:
        print(f"bench/peers/measure.py: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
