"""A publisher's and operator's client for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from . import operations, records
from .endpoint import CONNECT_SECONDS, TIMEOUT_SECONDS, WAIT_BACKOFF_SECONDS, Servers, Tls, Token
from .errors import Busy, DeadlineExceeded, ErrandError, Unavailable, from_rpc
from .operations import Filters, Operation
from .running import current_job
from .spec import JobSpec, Seconds

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .spec import Options

Answer = TypeVar("Answer")


class AsyncClient:
    """`Client` for asyncio: the same methods, awaited. Belongs to one event loop.

    ```python
    async with errand.AsyncClient("http://127.0.0.1:50051", token) as client:
        job = await client.publish("myapp.jobs.send_email", {"to": "ann@example.com"}, channel="emails")
        print(await client.result(job.id, timeout=60))
    ```
    """

    def __init__(
        self,
        server: str | Sequence[str] | None = None,
        token: Token | None = None,
        *,
        tls: Tls | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        """`server` and `token` default to `ERRAND_SERVER` and `ERRAND_TOKEN`; connects when first used."""
        self._servers = Servers(server, token, tls)
        self._timeout = timeout
        self._connecting = asyncio.Lock()
        self._channel: grpc.aio.Channel | None = None
        self._index = 0
        self._closed = False

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection. Calls under way fail."""
        async with self._connecting:
            self._closed = True
            if self._channel is not None:
                await self._channel.close()
                self._channel = None

    async def publish(
        self,
        func: str | Callable[..., Any],
        payload: dict[str, Any] | None = None,
        *,
        traceparent: str | None = None,
        **options: Unpack[Options],
    ) -> records.Published:
        """Stores one job; it is on disk when this returns.

        `traceparent` is the W3C trace context that the job's execution should belong to; within a job function it
        is that of the job, unless another is given.
        """
        return await self._call(operations.publish(JobSpec(func, payload or {}, **options)), traceparent)

    async def publish_batch(self, specs: Iterable[JobSpec], *, traceparent: str | None = None) -> list[records.Receipt]:
        """Stores up to 1,000 jobs in one go: all of them, or none. The receipts are in the order of the specs."""
        return await self._call(operations.publish_batch(specs), traceparent)

    async def publish_from(
        self,
        template_id: str,
        payload: dict[str, Any] | None = None,
        *,
        func: str = "",
        traceparent: str | None = None,
        **options: Unpack[Options],
    ) -> str:
        """Stores a new job like an old one, but for what is given, and returns its id."""
        spec = JobSpec(func, {}, **options)
        return await self._call(operations.clone(template_id, func, payload, spec), traceparent)

    async def get(self, job_id: str) -> records.Job:
        """Reads one job."""
        return await self._call(operations.get(job_id))

    async def status(self, job_id: str) -> records.Report:
        """Reads a job with its latest events and its place in the queue."""
        return await self._call(operations.status(job_id))

    async def page(
        self, filters: Filters | None = None, *, limit: int = 100, page_token: str = "", count: bool = False
    ) -> records.Page:
        """Reads one page of a list; with `count` also how many there are in all."""
        return await self._call(operations.list_jobs(filters or Filters(), limit, page_token, count=count))

    async def list_jobs(self, filters: Filters | None = None, *, limit: int = 100) -> list[records.Job]:
        """Reads up to `limit` jobs, newest first unless the filters say otherwise."""
        jobs: list[records.Job] = []
        token = ""
        while len(jobs) < limit:
            page = await self.page(filters, limit=min(limit - len(jobs), operations.PAGE_MAX), page_token=token)
            jobs += page.jobs
            token = page.next_page_token
            if not token:
                break
        return jobs

    async def events(self, job_id: str) -> list[records.JobEvent]:
        """Reads a job's history, oldest first."""
        return await self._call(operations.events(job_id))

    async def logs(self, job_id: str, kinds: Sequence[str] = ()) -> AsyncIterator[records.JobLog]:
        """Reads the lines that a job's function wrote, oldest first."""
        token = ""
        while True:
            lines, token = await self._call(operations.logs(job_id, kinds, token))
            for line in lines:
                yield line
            if not token:
                return

    async def cancel(self, job_id: str) -> records.Cancellation:
        """Cancels a pending job; asks the runner of a running one to stop."""
        return await self._call(operations.cancel(job_id))

    async def retry(self, job_id: str, delay: Seconds | None = None) -> str:
        """Publishes a failed, canceled or expired job anew, and returns the new one's id."""
        return await self._call(operations.retry(job_id, delay))

    async def delete(self, job_id: str) -> None:
        """Removes a job that does not run, with its events and logs."""
        await self._call(operations.delete(job_id))

    async def watch(
        self, job_id: str = "", *, channel: str = "", timeout: float | None = None
    ) -> AsyncIterator[records.Change]:
        """Tells events as they happen: those of one job, until it ends, or of all that the caller may see."""
        operation = operations.watch(job_id, channel)
        connection = await self._connected(timeout)
        stream = connection.unary_stream(
            operation.path,
            request_serializer=type(operation.request).SerializeToString,
            response_deserializer=operation.response.FromString,
        )(operation.request, timeout=timeout, metadata=self._servers.metadata())
        try:
            async for answer in stream:
                yield operation.read(answer)
        except grpc.aio.AioRpcError as error:
            raise self._failed(connection, error) from error
        finally:
            stream.cancel()

    async def wait(self, job_id: str, timeout: float | None = None) -> records.Job:
        """Waits until a job has ended, and returns it. `DeadlineExceeded` where it takes longer than `timeout`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        attempt = 0
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise DeadlineExceeded(f"job {job_id} has not ended within {timeout} s")
            try:
                # The watch of a job that has ended ends at once, so between the two calls nothing can be missed.
                async for _ in self.watch(job_id, timeout=left):
                    attempt = 0
                job = await self.get(job_id)
                if job.is_terminal:
                    return job
            except DeadlineExceeded:
                continue
            except (Unavailable, Busy):
                pause = WAIT_BACKOFF_SECONDS[min(attempt, len(WAIT_BACKOFF_SECONDS) - 1)]
                attempt += 1
                await asyncio.sleep(pause if left is None else min(pause, left))

    async def result(self, job_id: str, timeout: float | None = None) -> Any:
        """Waits until a job has ended, and returns what its function returned.

        `JobFailed`, `JobCanceled` or `JobExpired` where it ended without a result.
        """
        return operations.result_of(await self.wait(job_id, timeout))

    async def _call(self, operation: Operation[Answer], traceparent: str | None = None) -> Answer:
        if traceparent is None:
            job = current_job()
            traceparent = job.traceparent if job else ""
        # Each server once, and the first one again: it may have been restarted.
        for tries_left in reversed(range(len(self._servers) + 1)):
            connection = await self._connected(self._timeout)
            call = connection.unary_unary(
                operation.path,
                request_serializer=type(operation.request).SerializeToString,
                response_deserializer=operation.response.FromString,
            )
            try:
                metadata = self._servers.metadata(traceparent)
                return operation.read(await call(operation.request, timeout=self._timeout, metadata=metadata))
            except grpc.aio.AioRpcError as error:
                failure = self._failed(connection, error)
                if not (isinstance(failure, Unavailable) and operation.repeatable and tries_left):
                    raise failure from error
        raise AssertionError("the last try returns or raises")

    async def _connected(self, timeout: float | None) -> grpc.aio.Channel:
        """A channel to the first server that answers, beginning with the one that did before."""
        async with self._connecting:
            if self._closed:
                raise ErrandError("the client is closed")
            if self._channel is not None:
                return self._channel
            patience = min(CONNECT_SECONDS, self._timeout if timeout is None else timeout)
            for offset in range(len(self._servers)):
                index = self._index + offset
                channel = self._servers.aio_channel(index)
                if await _answers(channel, patience):
                    self._channel, self._index = channel, index
                    return channel
                await channel.close()
        raise Unavailable(f"cannot reach {', '.join(self._servers.urls)}")

    def _failed(self, connection: grpc.aio.Channel, error: grpc.aio.AioRpcError) -> ErrandError:
        failure = from_rpc(error)
        # Not closed: other calls may be waiting for answers on it.
        if isinstance(failure, Unavailable) and self._channel is connection:
            self._channel = None
            self._index += 1
        return failure


async def _answers(channel: grpc.aio.Channel, patience: float) -> bool:
    """Whether somebody answers on a channel, as soon as that is known."""
    deadline = time.monotonic() + patience
    while (state := channel.get_state(try_to_connect=True)) not in _DECIDED:
        left = deadline - time.monotonic()
        try:
            await asyncio.wait_for(channel.wait_for_state_change(state), left)
        except asyncio.TimeoutError:
            return False
    return state is grpc.ChannelConnectivity.READY


_DECIDED = (
    grpc.ChannelConnectivity.READY,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.SHUTDOWN,
)
