"""One `Attach` stream: opened with Hello, good once Welcome is there."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import grpc
import grpc.aio

from ..endpoint import Servers
from ..v1 import runners_pb2

WELCOME_SECONDS = 5.0
"""From dialling to Welcome."""
CLOSE_SECONDS = 1.0
"""A service that keeps its half open must not keep the runner."""

_ATTACH = "/errand.v1.Runners/Attach"
_REFUSALS = frozenset(
    {
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class LinkError(Exception):
    """There is no stream; worth another try, here or elsewhere."""


class LinkRefused(LinkError):
    """The same Hello will be refused again."""


class LinkTaken(LinkError):
    """Another live session bears the runner id; maybe the own one, not yet lapsed."""


class Link:
    """An open stream. One task reads, one task writes."""

    def __init__(self, channel: grpc.aio.Channel, call: Any, welcome: runners_pb2.Welcome) -> None:
        self._channel = channel
        self._call = call
        self.welcome = welcome
        self.since = time.monotonic()

    @classmethod
    async def open(cls, servers: Servers, index: int, hello: runners_pb2.Hello) -> Link:
        """Dials a server and waits for its Welcome."""
        channel = servers.aio_channel(index)
        try:
            return await asyncio.wait_for(cls._opened(channel, servers, hello), WELCOME_SECONDS)
        except asyncio.TimeoutError:
            await channel.close()
            raise LinkError(f"{servers.url(index)} sends no Welcome") from None
        except grpc.aio.AioRpcError as error:
            await channel.close()
            raise _as_link_error(error) from error
        except BaseException:
            await channel.close()
            raise

    @classmethod
    async def _opened(cls, channel: grpc.aio.Channel, servers: Servers, hello: runners_pb2.Hello) -> Link:
        call = channel.stream_stream(
            _ATTACH,
            request_serializer=runners_pb2.AttachRequest.SerializeToString,
            response_deserializer=runners_pb2.AttachResponse.FromString,
        )(metadata=servers.metadata())
        await _write(call, runners_pb2.AttachRequest(hello=hello))
        first: Any = await call.read()
        if first is grpc.aio.EOF:
            raise LinkError("the server closed the stream before its Welcome")
        kind = first.WhichOneof("message")
        if kind == "go_away":
            raise LinkError(f"the server goes away: {first.go_away.reason}")
        if kind != "welcome":
            raise LinkError("the server did not answer Hello with Welcome")
        return cls(channel, call, first.welcome)

    async def read(self) -> runners_pb2.AttachResponse | None:
        """The next message; None where the server has closed the stream. `LinkError` where it broke."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _as_link_error(error) from error
        return None if message is grpc.aio.EOF else message

    async def write(self, message: runners_pb2.AttachRequest) -> None:
        """Sends a message; `LinkError` where the stream is gone."""
        try:
            await _write(self._call, message)
        except grpc.aio.AioRpcError as error:
            raise _as_link_error(error) from error

    async def finish(self) -> None:
        """Closes the own half; the service reads what was written, and closes its own."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.done_writing()

    async def close(self) -> None:
        """Hangs up."""
        await self._channel.close()


async def _write(call: Any, message: runners_pb2.AttachRequest) -> None:
    try:
        await call.write(message)
    except asyncio.InvalidStateError:
        # The call is over. It knows why.
        code, details = await call.code(), await call.details()
        raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details) from None


def _as_link_error(error: grpc.aio.AioRpcError) -> LinkError:
    code = error.code()
    said = error.details() or ""
    if code in _REFUSALS:
        return LinkRefused(said)
    if code is grpc.StatusCode.ALREADY_EXISTS:
        return LinkTaken(said)
    return LinkError(f"{code.name}: {said}")
