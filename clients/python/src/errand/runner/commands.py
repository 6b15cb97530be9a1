"""The service's commands, and what a runner answers."""

from __future__ import annotations

import os
import platform
import resource
import sys
from typing import TYPE_CHECKING, Any

from .. import text
from ..v1 import runners_pb2
from .process import BrokenExecutor

if TYPE_CHECKING:
    from .session import Session


async def reply_to(command: runners_pb2.Command, session: Session) -> runners_pb2.CommandReply:
    """Carries a command out, and answers it."""
    reply = runners_pb2.CommandReply(command_id=command.command_id)
    try:
        reply.data_json = text.to_json(await _carry_out(command, session))
    except BrokenExecutor as error:
        reply.data_json = "{}"
        reply.error = text.cut(str(error), text.ERROR_MAX_BYTES)
    return reply


async def _carry_out(command: runners_pb2.Command, session: Session) -> dict[str, Any]:
    kind = command.kind
    if kind == runners_pb2.COMMAND_KIND_PING:
        return {"pong": True}
    if kind == runners_pb2.COMMAND_KIND_STATUS:
        return session.status()
    if kind == runners_pb2.COMMAND_KIND_SYSINFO:
        return system_information() | {"client": session.client, "hostname": session.hostname}
    if kind == runners_pb2.COMMAND_KIND_RELOAD:
        await session.reload()
        return {"reloaded": True}
    if kind in (runners_pb2.COMMAND_KIND_PAUSE, runners_pb2.COMMAND_KIND_RESUME):
        session.pause(paused=kind == runners_pb2.COMMAND_KIND_PAUSE)
        return {"paused": session.paused}
    if kind == runners_pb2.COMMAND_KIND_SHUTDOWN:
        running = session.running
        session.shut_down(release=not command.graceful)
        return {"stopping": True, "running": running}
    raise BrokenExecutor("this runner does not know that command")


def system_information() -> dict[str, Any]:
    """What machine and interpreter this is."""
    try:
        load: float | None = os.getloadavg()[0]
    except OSError:
        load = None
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "pid": os.getpid(),
        "os": sys.platform,
        "arch": platform.machine(),
        "cpus": os.cpu_count(),
        "load": load,
        "python": platform.python_version(),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }
