"""Who a runner is, where it connects, and what it runs."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from ..endpoint import Servers
from ..executor import wire
from ..registry import Kind

CAPACITY_DEFAULT = 10
CAPACITY_MAX = 10_000
RUNNER_ID_MAX = 64
_RUNNER_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class RunnerConfig:
    """Checked by `configure`."""

    servers: Servers
    runner_id: str
    channels: tuple[str, ...]
    capacity: int
    hostname: str
    processes: int
    boot: wire.Boot


def configure(
    modules: Sequence[str | ModuleType],
    servers: Servers,
    *,
    channels: Sequence[str],
    capacity: int | None,
    processes: int | None,
    runner_id: str | None,
) -> RunnerConfig:
    """Fills in defaults, and checks; `ValueError` says what was wanted."""
    if not modules:
        raise ValueError("a runner needs at least one module with job functions")
    if not channels or any(not channel for channel in channels):
        raise ValueError("a runner needs at least one channel, each with a name")
    if processes is not None and processes < 1:
        raise ValueError(f"processes must be at least 1, not {processes}")
    if capacity is None:
        capacity = processes or CAPACITY_DEFAULT
    if not 1 <= capacity <= CAPACITY_MAX:
        raise ValueError(f"capacity must be from 1 to {CAPACITY_MAX}, not {capacity}")
    hostname = socket.gethostname()
    runner_id = runner_id or _default_runner_id(hostname)
    if not _RUNNER_ID.fullmatch(runner_id):
        raise ValueError(f"runner id {runner_id!r} must be 1 to {RUNNER_ID_MAX} of A-Z a-z 0-9 . _ -")
    names = [module if isinstance(module, str) else module.__name__ for module in modules]
    return RunnerConfig(
        servers=servers,
        runner_id=runner_id,
        channels=tuple(channels),
        capacity=capacity,
        hostname=hostname,
        processes=processes or os.cpu_count() or 1,
        boot=wire.Boot(
            path=[path or os.getcwd() for path in sys.path],
            modules=names,
            main_file=_main_file() if "__main__" in names else "",
            default_kind=(Kind.PROCESS if processes else Kind.THREAD).value,
        ),
    )


def _default_runner_id(hostname: str) -> str:
    suffix = f"-{os.getpid()}"
    return re.sub(r"[^A-Za-z0-9._-]", "-", hostname)[: RUNNER_ID_MAX - len(suffix)] + suffix


def _main_file() -> str:
    file = getattr(sys.modules["__main__"], "__file__", None)
    if not isinstance(file, str):
        raise ValueError("__main__ is no file here: put the job functions into a module")
    return os.path.abspath(file)
