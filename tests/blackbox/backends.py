"""Postgres and Redis for the tests: one of each for the whole run, and more of them for tests that break them."""

import importlib.machinery
import importlib.util
import itertools
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid

from service import free_port
from wire import REPOSITORY


def _load_starter():
    """The script that starts both for the unit tests knows how; it has no ending that Python imports by itself."""
    loader = importlib.machinery.SourceFileLoader("with_servers", str(REPOSITORY / "scripts" / "with-servers"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("with_servers", loader))
    loader.exec_module(module)
    return module


starter = _load_starter()
REDIS_DATABASES = int(starter.REDIS_SETTINGS["databases"])
_redis_database = itertools.count(1)


class Backend:
    """A server in a folder and on a port of its own; it can be stopped, killed, frozen and started again."""

    # How it is stopped for good, if not as ever.
    last_signal = None

    def __init__(self):
        self.parent = tempfile.mkdtemp(prefix="errand-backend-")
        os.chmod(self.parent, 0o755)
        self.user = starter.unprivileged()
        self.port = free_port()
        self.server = None

    def start(self):
        self.server = starter.Server(self.name, self.command(), f"{self.parent}/log", self.stop_signal, self.user)
        assert self.server.answers(self.answers), self.server.tail()
        return self

    def stop(self):
        self.server.stop()

    def kill(self):
        os.killpg(self.server.child.pid, signal.SIGKILL)
        self.server.child.wait(20)

    def freeze(self):
        """Every process of it stands still, with its sockets open."""
        os.killpg(self.server.child.pid, signal.SIGSTOP)
        for pid in self.children():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self):
        for pid in self.children():
            os.kill(pid, signal.SIGCONT)
        os.killpg(self.server.child.pid, signal.SIGCONT)

    def children(self):
        listed = pathlib.Path(f"/proc/{self.server.child.pid}/task/{self.server.child.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    def remove(self):
        if self.server and self.server.child.poll() is None:
            self.thaw()
            self.server.stop_signal = self.last_signal or self.stop_signal
            self.server.stop()
        shutil.rmtree(self.parent, ignore_errors=True)


class Postgres(Backend):
    name = "postgres"
    stop_signal = starter.POSTGRES_STOP
    # At once: what it holds is not needed any more.
    last_signal = signal.SIGQUIT

    def __init__(self, **settings):
        super().__init__()
        self.settings = settings
        self.folder = starter.private_folder(self.parent, "postgres", self.user)
        starter.make_postgres(self.folder, self.user)

    def command(self):
        return [*starter.postgres_command(self.folder, self.port), *(f"--{k}={v}" for k, v in self.settings.items())]

    def answers(self):
        return starter.postgres_answers(self.folder, self.port)

    def run(self, statement, database="postgres"):
        """Runs SQL and answers its rows as text."""
        command = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port),
                   "-U", "errand", "-d", database, "-c", statement]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def statements(self, database):
        """How often which statement came from clients, where `pg_stat_statements` is loaded."""
        counted = self.run(
            "SELECT s.calls, regexp_replace(s.query, '\\s+', ' ', 'g') FROM pg_stat_statements AS s "
            f"JOIN pg_database AS d ON d.oid = s.dbid WHERE d.datname = '{database}' AND s.toplevel"
        )
        calls = (line.split("|", 1) for line in counted.splitlines())
        return {statement: int(times) for times, statement in calls}

    def database(self):
        """The URL of a new, empty database."""
        name = f"errand_{uuid.uuid4().hex[:12]}"
        self.run(f'CREATE DATABASE "{name}"')
        return f"postgres://errand@127.0.0.1:{self.port}/{name}"


class Redis(Backend):
    name = "redis-server"
    stop_signal = starter.REDIS_STOP

    def __init__(self):
        super().__init__()
        self.folder = starter.private_folder(self.parent, "redis", self.user)

    def command(self):
        return starter.redis_command(self.folder, self.port)

    def answers(self):
        return starter.redis_answers(self.port)

    def send(self, *words):
        """One command, for the tests that break things; answers the first line."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            encoded = [f"${len(word)}\r\n{word}\r\n" for word in words]
            connection.sendall(f"*{len(words)}\r\n{''.join(encoded)}".encode())
            return connection.makefile().readline().strip()

    def count_calls(self, seconds):
        """How many commands clients send it in that time; what a script does inside it is one command's business."""
        calls = 0
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(b"MONITOR\r\n")
            end = time.monotonic() + seconds
            connection.settimeout(0.2)
            rest = b""
            while time.monotonic() < end:
                try:
                    rest += connection.recv(1 << 16)
                except TimeoutError:
                    continue
                *lines, rest = rest.split(b"\r\n")
                calls += sum(1 for line in lines if line != b"+OK" and b" lua] " not in line)
        return calls

    def url(self, database=0):
        return f"redis://127.0.0.1:{self.port}/{database}"

    def fresh(self):
        """The URL of an empty database of it."""
        database = next(_redis_database) % REDIS_DATABASES
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(f"SELECT {database}\r\nFLUSHDB\r\n".encode())
            answers = connection.makefile()
            assert [answers.readline().strip() for _ in range(2)] == ["+OK", "+OK"]
        return self.url(database)


class Backends:
    """Both, for tests that want a database and leave the servers alone."""

    def __init__(self):
        self.postgres = Postgres().start()
        self.redis = Redis().start()

    def switches(self):
        """For one node, or for several that share everything."""
        return ("--database-url", self.postgres.database(), "--redis-url", self.redis.fresh())

    def remove(self):
        self.redis.remove()
        self.postgres.remove()

