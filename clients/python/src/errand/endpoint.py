"""Where the service is and how to speak to it: addresses, TLS and the bearer token."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

SERVER_DEFAULT = "http://127.0.0.1:50051"
MESSAGE_MAX_BYTES = 64 * 1024 * 1024
"""The largest answer taken: a page of 1,000 jobs with sizeable payloads fits."""
CONNECT_SECONDS = 3.0
TIMEOUT_SECONDS = 30.0
"""For one call, unless the client was told otherwise."""
WAIT_BACKOFF_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Between attempts to watch a job while no server answers; the last one again and again."""

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_send_message_length", -1),
    # A peer that hangs without closing is noticed after 10 s, well within the default lease of 15 s.
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.http2.ping_timeout_ms", 5000),
    ("grpc.http2.max_pings_without_data", 0),
    # Without its own pool a channel could be given the connection that another one is about to lose.
    ("grpc.use_local_subchannel_pool", 1),
    # A channel that could not connect is given up for a new one, and must not dial on by itself: a failed call of
    # grpc.aio and its error hold each other, and with them the channel, until the garbage collector comes.
    ("grpc.initial_reconnect_backoff_ms", 3_600_000),
    ("grpc.max_reconnect_backoff_ms", 3_600_000),
]

Token = str | Callable[[], str]
"""A token, or a function that answers a valid one whenever it is called."""


@dataclass(frozen=True)
class Tls:
    """PEM files. For mutual TLS `cert` and `key` name the client's own certificate."""

    ca: str | Path | None = None
    """Who signed the server's certificate; without it, one of gRPC's own authorities."""
    cert: str | Path | None = None
    key: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files; `OSError` where one cannot be read."""
        if (self.cert is None) != (self.key is None):
            raise ValueError("a client certificate needs both cert and key")
        ca, cert, key = (None if file is None else Path(file).read_bytes() for file in (self.ca, self.cert, self.key))
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)


class Servers:
    """The servers of one service. Any of them will do."""

    def __init__(
        self,
        servers: str | Sequence[str] | None = None,
        token: Token | None = None,
        tls: Tls | None = None,
    ) -> None:
        """What is not given is taken from the environment: `ERRAND_SERVER`, `ERRAND_TOKEN` and the TLS files.

        `ValueError` names an address that is none.
        """
        if servers is None:
            servers = os.environ.get("ERRAND_SERVER") or SERVER_DEFAULT
        if isinstance(servers, str):
            servers = servers.split(",")
        self.urls = [url for url in (_url(server) for server in servers) if url]
        if not self.urls:
            raise ValueError("no server is named")
        self._token: Token = token if token is not None else os.environ.get("ERRAND_TOKEN", "")
        self._credentials = None
        if any(url.startswith("https://") for url in self.urls):
            self._credentials = (tls or _tls_of_environment()).credentials()

    def __len__(self) -> int:
        return len(self.urls)

    def url(self, index: int) -> str:
        """The address of a server; any index will do, they wrap around."""
        return self.urls[index % len(self.urls)]

    def channel(self, index: int) -> grpc.Channel:
        """A channel to one server. Connects when it is used."""
        url = self.url(index)
        scheme, _, address = url.partition("://")
        if scheme == "https" and self._credentials:
            return grpc.secure_channel(address, self._credentials, options=_OPTIONS)
        return grpc.insecure_channel(address, options=_OPTIONS)

    def aio_channel(self, index: int) -> grpc.aio.Channel:
        """The same for asyncio."""
        url = self.url(index)
        scheme, _, address = url.partition("://")
        if scheme == "https" and self._credentials:
            return grpc.aio.secure_channel(address, self._credentials, options=_OPTIONS)
        return grpc.aio.insecure_channel(address, options=_OPTIONS)

    def metadata(self, traceparent: str = "") -> tuple[tuple[str, str], ...]:
        """What goes along with a call."""
        token = (self._token() if callable(self._token) else self._token).strip()
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        return (*metadata, ("traceparent", traceparent)) if traceparent else metadata


def _url(server: str) -> str:
    """An address with its scheme; a bare `host:port` means plain HTTP."""
    server = server.strip()
    if not server:
        return ""
    scheme, _, address = server.partition("://") if "://" in server else ("http", "", server)
    address = address.removesuffix("/")
    if scheme not in ("http", "https") or "/" in address:
        raise ValueError(f"server {server!r} must be http://HOST:PORT or https://HOST:PORT")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"server {server!r} must name its host and port")
    return f"{scheme}://{address}"


def _tls_of_environment() -> Tls:
    variables = ("ERRAND_TLS_CA", "ERRAND_CLIENT_TLS_CERT", "ERRAND_CLIENT_TLS_KEY")
    ca, cert, key = (os.environ.get(variable) or None for variable in variables)
    return Tls(ca, cert, key)
