"""The parts of a runner that are pure, or nearly: ledger, frames, threads, catalogue, backoff."""

import random
import sys
import threading
import types

import pytest
from service import eventually

from errand.executor.threads import TICK_SECONDS, Threads
from errand.executor.wire import Frames, frame
from errand.registry import Catalogue, Kind, UnknownFunction
from errand.runner.backoff import CAP_SECONDS, FIRST_SECONDS, Backoff
from errand.runner.ledger import LINES_MAX, LINES_QUEUED_MAX, RESULTS_MAX, Decision, Key, Ledger
from errand.running import Line, Outcome
from errand.text import cut, to_json
from errand.v1 import job_pb2, runners_pb2

DONE = Outcome("completed", "1")


def lease(number, attempt=1):
    return job_pb2.Lease(job_id=f"job-{number}", attempt=attempt)


def key(number, attempt=1):
    return Key(f"job-{number}", attempt)


def receipt(number, *, accepted=True):
    return runners_pb2.ResultReceipt(lease=lease(number), accepted=accepted)


def outgoing(ledger):
    """Everything that it has to say."""
    messages = []
    while (message := ledger.next_outgoing()) is not None:
        messages.append(message)
    return messages


def named(message):
    return [entry.job_id for entry in message.heartbeat.leases]


def test_an_assignment_is_accepted_at_once_by_its_name_alone():
    ledger = Ledger(3)
    assert [ledger.assign(lease(n)) for n in (1, 2)] == [Decision.START] * 2
    assert [named(message) for message in outgoing(ledger)] == [["job-1", "job-2"]]
    ledger.assign(lease(3))
    assert [named(message) for message in outgoing(ledger)] == [["job-3"]]
    ledger.heartbeat_due()
    assert [named(message) for message in outgoing(ledger)] == [["job-1", "job-2", "job-3"]]


def test_a_lease_is_held_until_the_receipt_of_its_result():
    ledger = Ledger(1)
    ledger.assign(lease(1))
    ledger.ended(key(1), DONE, '{"a":1}')
    outgoing(ledger)
    ledger.heartbeat_due()
    assert named(outgoing(ledger)[0]) == ["job-1"]
    ledger.receipted([receipt(1)])
    ledger.heartbeat_due()
    assert named(outgoing(ledger)[0]) == []
    assert ledger.is_settled()


def test_results_are_sent_again_on_another_stream_until_their_receipt():
    ledger = Ledger(2)
    for number in (1, 2):
        ledger.assign(lease(number))
        ledger.ended(key(number), DONE, None)
    outgoing(ledger)
    ledger.receipted([receipt(1)])
    assert ledger.welcomed(2, []) == []
    heartbeat, results = outgoing(ledger)
    assert named(heartbeat) == ["job-2"]
    assert [result.lease.job_id for result in results.results.results] == ["job-2"]
    assert results.results.results[0].completed.result_json == "1"


def test_what_was_done_or_is_owed_does_not_run_again():
    ledger = Ledger(2)
    ledger.assign(lease(1))
    assert ledger.assign(lease(1)) is Decision.DUPLICATE
    ledger.ended(key(1), DONE, None)
    outgoing(ledger)
    assert ledger.assign(lease(1)) is Decision.DUPLICATE
    (again,) = outgoing(ledger)
    assert again.results.results[0].lease.job_id == "job-1"
    ledger.receipted([receipt(1)])
    assert ledger.assign(lease(1)) is Decision.DUPLICATE
    assert ledger.assign(lease(1, attempt=2)) is Decision.START


def test_a_refused_result_may_run_again():
    ledger = Ledger(1)
    ledger.assign(lease(1))
    ledger.ended(key(1), DONE, None)
    ledger.receipted([receipt(1, accepted=False)])
    assert ledger.assign(lease(1)) is Decision.START


def test_without_room_an_assignment_is_handed_back():
    ledger = Ledger(1)
    ledger.assign(lease(1))
    assert ledger.assign(lease(2)) is Decision.RELEASED
    (result,) = outgoing(ledger)[-1].results.results
    assert (result.lease.job_id, result.HasField("released")) == ("job-2", True)


def test_a_lost_execution_is_stopped_and_its_result_goes_nowhere():
    ledger = Ledger(1)
    ledger.assign(lease(1))
    assert ledger.welcomed(1, [lease(1)]) == [key(1)]
    assert ledger.assign(lease(1)) is Decision.RELEASED, "its first execution is still dying"
    assert ledger.assign(lease(2)) is Decision.START
    ledger.ended(key(1), DONE, None)
    sent = [result for message in outgoing(ledger) for result in message.results.results]
    assert [result.HasField("completed") for result in sent] == [False]


def test_reports_go_before_the_result():
    ledger = Ledger(2)
    ledger.assign(lease(1))
    outgoing(ledger)
    ledger.metadata(key(1), '{"step":1}')
    ledger.log(key(1), Line(1.5, "warn", "careful", "{}"))
    ledger.metadata(key(1), '{"step":2}')
    ledger.ended(key(1), DONE, None)
    ledger.metadata(key(1), '{"step":3}')
    progress, results = outgoing(ledger)
    assert progress.progress.metadata_json == '{"step":2}'
    assert [(line.kind, line.message) for line in progress.progress.logs] == [(job_pb2.LOG_KIND_WARN, "careful")]
    assert len(results.results.results) == 1


def test_lines_are_split_over_messages_and_what_is_too_many_is_told():
    ledger = Ledger(1)
    ledger.assign(lease(1))
    outgoing(ledger)
    for number in range(LINES_QUEUED_MAX + 7):
        ledger.log(key(1), Line(1.0, "info", str(number), "{}"))
    messages = outgoing(ledger)
    assert max(len(message.progress.logs) for message in messages) <= LINES_MAX
    said = [line.message for message in messages for line in message.progress.logs]
    assert said[:-1] == [str(number) for number in range(LINES_QUEUED_MAX)]
    assert said[-1].startswith("7 log lines were dropped")
    ledger.log(key(1), Line(1.0, "info", "room again", "{}"))
    assert outgoing(ledger)[0].progress.logs[0].message == "room again"


def test_results_are_split_by_number_and_by_size():
    ledger = Ledger(10_000)
    for number in range(RESULTS_MAX + 1):
        ledger.assign(lease(number))
        ledger.ended(key(number), DONE, None)
    assert [len(m.results.results) for m in outgoing(ledger) if m.HasField("results")] == [RESULTS_MAX, 1]
    for number in range(3):
        ledger.assign(lease(number, attempt=2))
        ledger.ended(key(number, attempt=2), Outcome("completed", "1" * 1_500_000), None)
    assert [len(m.results.results) for m in outgoing(ledger) if m.HasField("results")] == [2, 1]


def test_a_new_capacity_is_announced_once():
    ledger = Ledger(4)
    ledger.set_capacity(0)
    assert [message.set_capacity.capacity for message in outgoing(ledger)] == [0]
    ledger.welcomed(0, [])
    ledger.set_capacity(4)
    assert [m.set_capacity.capacity for m in outgoing(ledger) if m.HasField("set_capacity")] == [4]


def test_everything_that_runs_is_handed_back():
    ledger = Ledger(2)
    ledger.assign(lease(1))
    ledger.assign(lease(2))
    ledger.release_all()
    results = [result for message in outgoing(ledger) for result in message.results.results]
    assert [result.HasField("released") for result in results] == [True, True]
    assert ledger.running() == 0


def test_the_first_delay_is_none_and_the_last_is_capped():
    backoff = Backoff()
    delays = [backoff.next_delay(1.0) for _ in range(12)]
    assert delays[:3] == [0.0, FIRST_SECONDS, FIRST_SECONDS * 2]
    assert delays[-1] == CAP_SECONDS
    assert backoff.next_delay(0.0) == CAP_SECONDS / 2


def test_frames_come_together_however_they_are_cut():
    contents = [(1, "ä", None, 2.5), [("x" * 70_000, b"\0")], []]
    stream = b"".join(map(frame, contents))
    dice = random.Random(7)
    for _ in range(50):
        frames, read, rest = Frames(), [], stream
        while rest:
            size = dice.choice([1, 3, 5, 1000, 80_000])
            read += frames.feed(rest[:size])
            rest = rest[size:]
        assert read == contents


class Gate:
    """Work that begins, and ends when it is let."""

    def __init__(self):
        self.begun = 0
        self.threads = set()
        self.counting = threading.Lock()
        self.open = threading.Event()

    def run(self, blocks):
        with self.counting:
            self.begun += 1
            self.threads.add(threading.get_ident())
        if blocks:
            self.open.wait(30)


def test_quick_work_stays_on_one_thread():
    gate, idle = Gate(), threading.Event()
    threads = Threads(gate.run, idle.set)
    threads.add([False] * 500)
    assert idle.wait(30)
    assert (gate.begun, len(gate.threads)) == (500, 1)


def test_work_that_blocks_gets_threads_and_no_more_than_it_needs():
    gate = Gate()
    threads = Threads(gate.run, lambda: None)
    threads.add([True] * 30)

    def all_have_begun():
        threads.tick(30)
        return gate.begun == 30

    eventually("all have begun", all_have_begun, every=TICK_SECONDS)
    assert len(gate.threads) == 30
    gate.open.set()
    threads.add([False] * 10)
    eventually("the rest is done", lambda: gate.begun == 40)
    assert len(gate.threads) == 30


def test_a_catalogue_has_what_the_modules_define(monkeypatch):
    module = types.ModuleType("shop")
    exec(
        "from os import getcwd\nimport os\nPRICE = 3\n"
        "def sell(job): ...\nasync def ship(job): ...\ndef _hide(job): ...",
        vars(module),
    )
    part = types.ModuleType("shop.part")
    exec("def pack(job): ...", vars(part))
    other = types.ModuleType("shopping")
    exec("def list(job): ...", vars(other))
    for each in (module, part, other):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    catalogue = Catalogue([module], Kind.PROCESS)
    assert catalogue.kinds() == {"shop.sell": "process", "shop.ship": "coroutine", "shop.part.pack": "process"}
    for name in ("shop._hide", "shop.getcwd", "shop.os.getcwd", "shopping.list", "shop.PRICE", "sell", ""):
        with pytest.raises(UnknownFunction, match="this runner has no function"):
            catalogue.find(name)


def test_text_is_cut_between_characters():
    assert cut("aäa", 2) == "a"
    assert cut("a" * 10, 3) == "aaa"
    assert cut("\ud800", 9) == "?"


def test_json_is_utf8_whatever_the_strings():
    assert to_json({"a": "ä"}) == '{"a":"ä"}'
    assert to_json("\ud800").encode() == b'"\\ud800"'
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json(float("inf"))
