"""One process of a peer that is written in Python: publishes or runs jobs as bench/peers/measure.py tells it.

The same commands and answers as in hand.mjs; publishes in flight are threads here. A peer is an object with

    prepare()                 once, before anything else: schema, queue
    publisher(in_flight)      connects; then single(payload), batch(payloads) if `batches`, left() and clear() may be called
    runners_per_processor     how many processes should run jobs
    run(job)                  takes jobs until the process ends, and calls job(payload) for each
"""

import itertools
import json
import os
import queue
import sys
import threading
import time

REPORT_EVERY = 0.02


def now():
    """Microseconds of the clock that all processes of a machine share."""
    return time.monotonic_ns() // 1000


class Tally:
    """What the jobs of this process say when they start."""

    def __init__(self):
        self.again()

    def again(self):
        # Counting up an iterator is atomic; adding to a number from several threads is not.
        self.counter = itertools.count(1)
        self.done = 0
        self.first = 0
        self.latencies = []

    def job(self, payload):
        at = now()
        self.first = self.first or at
        if "intended" in payload:
            self.latencies.append(at - payload["intended"])
        self.done = max(self.done, next(self.counter))


class Publishing:
    """Publishes from as many threads as there may be publishes in flight."""

    def __init__(self, peer):
        self.peer = peer

    def publish(self, how, in_flight, filler, batch, seconds=None, jobs=None):
        began = now()
        end = began + seconds * 1_000_000 if seconds else None
        size = batch if how == "batch" else 1
        # Each thread publishes its share: then no lock is shared by them.
        shares = [None if jobs is None else jobs * (number + 1) // in_flight - jobs * number // in_flight for number in range(in_flight)]

        def one(share):
            published = 0
            while (share is None or published < share) and (end is None or now() < end):
                count = size if share is None else min(size, share - published)
                if how == "batch":
                    self.peer.batch([{"filler": filler}] * count)
                else:
                    self.peer.single({"filler": filler})
                published += count
            return published

        return {"jobs": sum(each(one, shares)), "began": began, "ended": now()}

    def pace(self, begin, gap, first, jobs, warm_ups, in_flight):
        due = queue.SimpleQueue()

        def one(_):
            published = 0
            while (payload := due.get()) is not None:
                self.peer.single(payload)
                published += 1
            return published

        def clock():
            # Jobs with a negative number warm up and carry no moment.
            for number in range(-warm_ups, jobs):
                intended = begin + first + number * gap
                time.sleep(max(0, intended - now()) / 1e6)
                due.put({} if number < 0 else {"intended": intended})
            for _ in range(in_flight):
                due.put(None)

        threading.Thread(target=clock, daemon=True).start()
        return {"jobs": sum(each(one, range(in_flight)))}


def each(function, values):
    """What it returns for each value, at the same time; raises what one of them raised."""
    answers = []

    def one(value):
        try:
            answers.append(function(value))
        except Exception as error:
            answers.append(error)

    threads = [threading.Thread(target=one, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


class Hand:
    def __init__(self, peer):
        self.peer = peer
        self.in_flight = int(os.environ["PEER_IN_FLIGHT"])
        self.tally = Tally()
        self.voice = threading.Lock()
        # What a library prints must not get between the answers.
        self.output = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def say(self, line):
        with self.voice:
            self.output.write(json.dumps(line) + "\n")

    def connect(self):
        self.peer.publisher(self.in_flight)
        return {"batches": self.peer.batches, "runners_per_processor": self.peer.runners_per_processor}

    def run(self):
        threading.Thread(target=self.peer.run, args=(self.tally.job,), daemon=True).start()
        threading.Thread(target=self.report, daemon=True).start()

    def report(self):
        said = 0
        while True:
            time.sleep(REPORT_EVERY)
            if self.tally.done != said:
                said = self.tally.done
                self.say({"done": said, "first": self.tally.first})

    def commands(self):
        publishing = Publishing(self.peer)
        return {
            "prepare": self.peer.prepare,
            "connect": self.connect,
            "left": self.peer.left,
            "clear": self.peer.clear,
            "publish": publishing.publish,
            "pace": lambda **more: publishing.pace(in_flight=self.in_flight, **more),
            "run": self.run,
            "again": self.tally.again,
            "latencies": lambda: self.tally.latencies,
        }


def serve(peer):
    hand = Hand(peer)
    commands = hand.commands()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            hand.say({"answer": commands[command.pop("do")](**command)})
        except Exception as error:
            hand.say({"failed": f"{type(error).__name__}: {error}"})
    # Whoever gave the commands has gone: nothing of this run is needed any more.
    os._exit(0)
