"""What supervisor and executor say to each other, and how it is framed.

Frames are a length and a `marshal` dump: both sides are the same interpreter, everything is plain values, and nothing
is quicker to make or runs code when it is read.
"""

from __future__ import annotations

import marshal
import struct
from typing import Any, NamedTuple

_HEADER = struct.Struct(">I")
FRAME_MAX_BYTES = 256 * 1024 * 1024
"""What one frame may hold: a message of assignments, at most."""

# Supervisor to executor: a tuple that begins with one of these.
BOOT = "boot"
"""With a `Boot`; the first frame."""
START = "start"
"""With a list of `Order`."""
CANCEL = "cancel"
"""With a serial: somebody asked for it."""
ABANDON = "abandon"
"""With a serial: nobody wants the result any more."""

# Executor to supervisor: a list of tuples that begin with one of these.
READY = "ready"
"""With the kind of each function by name."""
BROKEN = "broken"
"""With the traceback of an import that failed; the executor ends."""
ENDED = "ended"
"""With a serial, an `Outcome`, and the metadata as JSON or None where it did not change."""
METADATA = "metadata"
"""With a serial and the metadata as JSON."""
LOG = "log"
"""With a serial and a `Line`."""


class Boot(NamedTuple):
    """How an executor sets itself up."""

    path: list[str]
    modules: list[str]
    main_file: str
    """The file that is `__main__` to the program, where that is one of the modules."""
    default_kind: str


class Order(NamedTuple):
    """An execution to start."""

    serial: int
    """Names the execution between the two."""
    job_id: str
    attempt: int
    func: str
    channel: str
    payload_json: str
    metadata_json: str
    deadline: float
    """Unix time; 0 for none."""
    max_retries: int
    traceparent: str


def frame(content: tuple[Any, ...] | list[tuple[Any, ...]]) -> bytes:
    """One frame, to be written as it is."""
    body = marshal.dumps(content)
    if len(body) > FRAME_MAX_BYTES:
        raise ValueError(f"a frame of {len(body)} bytes is over the limit of {FRAME_MAX_BYTES}")
    return _HEADER.pack(len(body)) + body


class Frames:
    """Puts frames together from what a socket gives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Takes bytes, and returns what is complete with them."""
        buffer = self._buffer
        buffer += data
        contents = []
        start = 0
        while len(buffer) - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(buffer, start)
            if length > FRAME_MAX_BYTES:
                raise ValueError(f"a frame of {length} bytes is over the limit of {FRAME_MAX_BYTES}")
            end = start + _HEADER.size + length
            if len(buffer) < end:
                break
            contents.append(marshal.loads(memoryview(buffer)[start + _HEADER.size : end]))
            start = end
        del buffer[:start]
        return contents
