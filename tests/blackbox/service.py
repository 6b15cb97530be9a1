"""The processes under test: `errand serve`, and `errand-gateway` before it."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import threading
import time

from rest import Rest
from waiting import eventually
from wire import REPOSITORY, Grpc

TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target") / "debug"
ERRAND = os.environ.get("ERRAND_BIN") or str(TARGET / "errand")
GATEWAY = os.environ.get("ERRAND_GATEWAY_BIN") or str(TARGET / "errand-gateway")

# Short enough for a test to wait out, long enough for a busy machine.
QUICK = (
    "--heartbeat-interval=500ms",
    "--accept-timeout=2s",
    "--lease-ttl=3s",
    "--resume-window=1s",
)
READY = re.compile(r"^errand ready http=(\S+) grpc=(\S+)\s*$")


def clean_environment(**more):
    """No ERRAND_ variable of whoever runs the tests reaches the program."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ERRAND_")}
    return {**kept, **more}


def errand(*arguments, timeout=60, **options):
    """Runs one command to its end."""
    options.setdefault("env", clean_environment())
    return subprocess.run([ERRAND, *arguments], capture_output=True, text=True, timeout=timeout, **options)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    def __init__(self, command, log, cwd=None, env=None):
        self.log = pathlib.Path(log)
        self.lines = []
        with open(self.log, "ab") as stderr:
            self.child = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                text=True,
                env=env or clean_environment(),
                cwd=cwd,
            )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.child.stdout:
            self.lines.append(line)

    def alive(self):
        return self.child.poll() is None

    def terminate(self):
        if self.alive():
            self.child.send_signal(signal.SIGTERM)

    def wait(self, seconds=30):
        return self.child.wait(seconds)

    def kill(self):
        self.child.kill()
        self.child.wait(10)

    def end(self):
        """Stops it, hard where asking is not enough."""
        self.terminate()
        try:
            return self.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running 15 s after SIGTERM\n{self.tail()}")

    def tail(self):
        return self.log.read_text(errors="replace")[-4000:]


class Service:
    """One `errand serve` on one data directory; it can be stopped, killed and started again."""

    def __init__(self, folder, *switches):
        self.folder = pathlib.Path(folder)
        self.data_dir = self.folder / "data"
        self.log = self.folder / "stderr.log"
        self.switches = switches
        self.process = None
        self.clients = []
        self.tokens = {}

    def start(self, http="127.0.0.1:0", grpc="127.0.0.1:0"):
        return self.launch(
            "serve", "--http", http, "--grpc", grpc, "--data-dir", str(self.data_dir), *self.switches
        )

    def launch(self, *arguments, env=None):
        """Starts the program with just these arguments and waits until it is ready."""
        self.process = Process([ERRAND, *arguments], self.log, cwd=self.folder, env=env)
        end = time.monotonic() + 30
        while True:
            ready = next((match for match in map(READY.match, list(self.process.lines)) if match), None)
            if ready:
                break
            if not self.process.alive() or time.monotonic() > end:
                raise AssertionError(f"the service did not get ready\n{self.process.tail()}")
            time.sleep(0.01)
        self.http, self.grpc_address = ready.groups()
        return self

    def stop(self):
        self._hang_up()
        return self.process.end()

    def kill(self):
        self.process.kill()
        self._hang_up()

    def restart(self):
        if self.process.alive():
            self.stop()
        return self.start()

    def _hang_up(self):
        for client in self.clients:
            client.close()
        self.clients.clear()

    def token(self, subject, *permissions, channels=(), expires_in=None):
        key = (subject, permissions, tuple(channels), expires_in)
        if key not in self.tokens:
            command = ["token", "--data-dir", str(self.data_dir), "--subject", subject]
            for permission in permissions:
                command += ["--permission", permission]
            for channel in channels:
                command += ["--channel", channel]
            if expires_in:
                command += ["--expires-in", expires_in]
            done = errand(*command)
            assert done.returncode == 0, f"errand token: {done.returncode} {done.stderr}"
            self.tokens[key] = done.stdout.strip()
        return self.tokens[key]

    def rest(self, subject="operator", *permissions):
        return Rest(self, f"http://{self.http}", self.token(subject, *(permissions or ("manage_jobs",))))

    def grpc(self, subject="operator", *permissions, token=None):
        client = Grpc(self.grpc_address, token or self.token(subject, *(permissions or ("manage_jobs",))))
        self.clients.append(client)
        return client


class Gateway:
    """`errand-gateway` before a core that is somewhere else."""

    def __init__(self, folder, upstream):
        self.address = f"127.0.0.1:{free_port()}"
        self.process = Process(
            [GATEWAY, "--upstream", f"http://{upstream}", "--http", self.address], pathlib.Path(folder) / "gateway.log"
        )
        eventually("the gateway listens", self._listens, seconds=30)

    def _listens(self):
        assert self.process.alive(), f"the gateway ended\n{self.process.tail()}"
        host, port = self.address.rsplit(":", 1)
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((host, int(port))) == 0

    def end(self):
        return self.process.end()
