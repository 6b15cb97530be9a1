"""A publisher's and operator's client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

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


class Client:
    """Publishes jobs, and follows, lists and steers them. May be shared by threads.

    ```python
    with errand.Client("http://127.0.0.1:50051", token) as client:
        job = client.publish("myapp.jobs.send_email", {"to": "ann@example.com"}, channel="emails")
        print(client.result(job.id, timeout=60))
    ```

    Where several servers are named, separated by commas or as a list, the client uses the first that answers, and
    goes to the next when that one goes away. A call that may be made twice, such as reading or publishing with an
    idempotency key, is made again there; any other raises `Unavailable`, for nobody knows whether it was carried out.
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
        self._connecting = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._index = 0
        self._closed = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. Calls under way fail."""
        with self._connecting:
            self._closed = True
            if self._channel is not None:
                self._channel.close()
                self._channel = None

    def publish(
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
        return self._call(operations.publish(JobSpec(func, payload or {}, **options)), traceparent)

    def publish_batch(self, specs: Iterable[JobSpec], *, traceparent: str | None = None) -> list[records.Receipt]:
        """Stores up to 1,000 jobs in one go: all of them, or none. The receipts are in the order of the specs."""
        return self._call(operations.publish_batch(specs), traceparent)

    def publish_from(
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
        return self._call(operations.clone(template_id, func, payload, spec), traceparent)

    def get(self, job_id: str) -> records.Job:
        """Reads one job."""
        return self._call(operations.get(job_id))

    def status(self, job_id: str) -> records.Report:
        """Reads a job with its latest events and its place in the queue."""
        return self._call(operations.status(job_id))

    def page(
        self, filters: Filters | None = None, *, limit: int = 100, page_token: str = "", count: bool = False
    ) -> records.Page:
        """Reads one page of a list; with `count` also how many there are in all."""
        return self._call(operations.list_jobs(filters or Filters(), limit, page_token, count=count))

    def list_jobs(self, filters: Filters | None = None, *, limit: int = 100) -> list[records.Job]:
        """Reads up to `limit` jobs, newest first unless the filters say otherwise."""
        jobs: list[records.Job] = []
        token = ""
        while len(jobs) < limit:
            page = self.page(filters, limit=min(limit - len(jobs), operations.PAGE_MAX), page_token=token)
            jobs += page.jobs
            token = page.next_page_token
            if not token:
                break
        return jobs

    def events(self, job_id: str) -> list[records.JobEvent]:
        """Reads a job's history, oldest first."""
        return self._call(operations.events(job_id))

    def logs(self, job_id: str, kinds: Sequence[str] = ()) -> Iterator[records.JobLog]:
        """Reads the lines that a job's function wrote, oldest first."""
        token = ""
        while True:
            lines, token = self._call(operations.logs(job_id, kinds, token))
            yield from lines
            if not token:
                return

    def cancel(self, job_id: str) -> records.Cancellation:
        """Cancels a pending job; asks the runner of a running one to stop."""
        return self._call(operations.cancel(job_id))

    def retry(self, job_id: str, delay: Seconds | None = None) -> str:
        """Publishes a failed, canceled or expired job anew, and returns the new one's id."""
        return self._call(operations.retry(job_id, delay))

    def delete(self, job_id: str) -> None:
        """Removes a job that does not run, with its events and logs."""
        self._call(operations.delete(job_id))

    def watch(self, job_id: str = "", *, channel: str = "", timeout: float | None = None) -> Iterator[records.Change]:
        """Tells events as they happen: those of one job, until it ends, or of all that the caller may see."""
        operation = operations.watch(job_id, channel)
        connection = self._connected(timeout)
        stream = connection.unary_stream(
            operation.path,
            request_serializer=type(operation.request).SerializeToString,
            response_deserializer=operation.response.FromString,
        )(operation.request, timeout=timeout, metadata=self._servers.metadata())
        try:
            for answer in stream:
                yield operation.read(answer)
        except grpc.RpcError as error:
            raise self._failed(connection, error) from error
        finally:
            stream.cancel()

    def wait(self, job_id: str, timeout: float | None = None) -> records.Job:
        """Waits until a job has ended, and returns it. `DeadlineExceeded` where it takes longer than `timeout`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        attempt = 0
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise DeadlineExceeded(f"job {job_id} has not ended within {timeout} s")
            try:
                # The watch of a job that has ended ends at once, so between the two calls nothing can be missed.
                for _ in self.watch(job_id, timeout=left):
                    attempt = 0
                job = self.get(job_id)
                if job.is_terminal:
                    return job
            except DeadlineExceeded:
                continue
            except (Unavailable, Busy):
                pause = WAIT_BACKOFF_SECONDS[min(attempt, len(WAIT_BACKOFF_SECONDS) - 1)]
                attempt += 1
                time.sleep(pause if left is None else min(pause, left))

    def result(self, job_id: str, timeout: float | None = None) -> Any:
        """Waits until a job has ended, and returns what its function returned.

        `JobFailed`, `JobCanceled` or `JobExpired` where it ended without a result.
        """
        return operations.result_of(self.wait(job_id, timeout))

    def _call(self, operation: Operation[Answer], traceparent: str | None = None) -> Answer:
        if traceparent is None:
            job = current_job()
            traceparent = job.traceparent if job else ""
        # Each server once, and the first one again: it may have been restarted.
        for tries_left in reversed(range(len(self._servers) + 1)):
            connection = self._connected(self._timeout)
            call = connection.unary_unary(
                operation.path,
                request_serializer=type(operation.request).SerializeToString,
                response_deserializer=operation.response.FromString,
            )
            try:
                metadata = self._servers.metadata(traceparent)
                return operation.read(call(operation.request, timeout=self._timeout, metadata=metadata))
            except grpc.RpcError as error:
                failure = self._failed(connection, error)
                if not (isinstance(failure, Unavailable) and operation.repeatable and tries_left):
                    raise failure from error
        raise AssertionError("the last try returns or raises")

    def _connected(self, timeout: float | None) -> grpc.Channel:
        """A channel to the first server that answers, beginning with the one that did before."""
        with self._connecting:
            if self._closed:
                raise ErrandError("the client is closed")
            if self._channel is not None:
                return self._channel
            patience = min(CONNECT_SECONDS, self._timeout if timeout is None else timeout)
            for offset in range(len(self._servers)):
                index = self._index + offset
                channel = self._servers.channel(index)
                if _answers(channel, patience):
                    self._channel, self._index = channel, index
                    return channel
                channel.close()
        raise Unavailable(f"cannot reach {', '.join(self._servers.urls)}")

    def _failed(self, connection: grpc.Channel, error: grpc.RpcError) -> ErrandError:
        failure = from_rpc(error)
        if isinstance(failure, Unavailable):
            with self._connecting:
                # Not closed: other threads may be waiting for answers on it.
                if self._channel is connection:
                    self._channel = None
                    self._index += 1
        return failure


def _answers(channel: grpc.Channel, patience: float) -> bool:
    """Whether somebody answers on a channel, as soon as that is known."""
    known = threading.Event()
    states: list[grpc.ChannelConnectivity] = []

    def changed(state: grpc.ChannelConnectivity) -> None:
        if state in _DECIDED:
            states.append(state)
            known.set()

    channel.subscribe(changed, try_to_connect=True)
    known.wait(patience)
    channel.unsubscribe(changed)
    return grpc.ChannelConnectivity.READY in states[:1]


_DECIDED = (
    grpc.ChannelConnectivity.READY,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.SHUTDOWN,
)
