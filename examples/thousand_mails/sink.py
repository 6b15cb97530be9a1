"""A mail server that takes everything and sends nothing: just enough SMTP for a client to be content."""

from __future__ import annotations

import re
import socketserver
import sys
import threading

_seen: dict[str, int] = {}
_guard = threading.Lock()


class Sink(socketserver.StreamRequestHandler):
    """One connection."""

    def handle(self) -> None:
        """Answers every command, and counts the mails by their Message-ID."""
        self._say("220 sink")
        for line in self.rfile:
            verb = line[:4].upper()
            if verb == b"DATA":
                self._say("354 go on")
                self._take()
                self._say("250 taken")
            elif verb == b"QUIT":
                self._say("221 bye")
                return
            else:
                self._say("250 fine")

    def _say(self, answer: str) -> None:
        self.wfile.write(answer.encode() + b"\r\n")

    def _take(self) -> None:
        name = ""
        for line in self.rfile:
            if line == b".\r\n":
                break
            if found := re.match(rb"message-id: *(\S+)", line, re.IGNORECASE):
                name = found[1].decode()
        with _guard:
            _seen[name] = _seen.get(name, 0) + 1
            if len(_seen) % 100 == 0:
                print(f"{len(_seen)} mails, {sum(_seen.values())} deliveries", flush=True)


class Server(socketserver.ThreadingTCPServer):
    """One thread a connection."""

    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    with Server(("127.0.0.1", int(sys.argv[1])), Sink) as server:
        print(f"listening on {server.server_address[1]}", flush=True)
        server.serve_forever()
