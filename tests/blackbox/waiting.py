"""Waiting for facts. Nothing here sleeps for luck: every wait has a claim and a deadline."""

import re
import time
from datetime import datetime, timezone

DEADLINE = 20.0


def eventually(claim, check, seconds=DEADLINE, every=0.02):
    """Calls `check` until it answers something true, and answers that."""
    end = time.monotonic() + seconds
    last = None
    while True:
        last = check()
        if last:
            return last
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {claim} (last answer: {last!r})")
        time.sleep(every)


def holds(claim, check, seconds):
    """Watches for the whole time that `check` stays true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = check()
        assert answer, f"stopped holding: {claim}"
        time.sleep(0.05)


RFC3339_UTC = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")


def moment(text):
    """The instant that an answer's time names; asserts its form."""
    assert isinstance(text, str) and RFC3339_UTC.match(text), f"not RFC 3339 in UTC: {text!r}"
    whole, _, fraction = text[:-1].partition(".")
    parsed = datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    return parsed.timestamp() + (float("0." + fraction) if fraction else 0.0)


def iso(at, offset="Z"):
    """An instant as a publisher would write it."""
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f") + offset
