"""The processes under test: `errand serve`, and `errand-gateway` before it."""

import glob
import itertools
import os
import pathlib
import random
import re
import secrets
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
# Below those that Linux gives to outgoing connections unless told otherwise.
PORTS = range(15_000, 32_000)
READY = re.compile(r"^errand ready http=(\S+) grpc=(\S+)\s*$")


def clean_environment(**more):
    """No ERRAND_ variable of whoever runs the tests reaches the program."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ERRAND_")}
    return {**kept, **more}


def errand(*arguments, timeout=60, **options):
    """Runs one command to its end."""
    options.setdefault("env", clean_environment())
    return subprocess.run([ERRAND, *arguments], capture_output=True, text=True, timeout=timeout, **options)


def free_ports(count):
    """So many different ones."""
    ports = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def free_port():
    """One that stays free while its server is down: the system gives none of these to a connection that somebody makes, not
    even to one that is made to this very port, which would then be connected with itself."""
    ports = list(PORTS)
    random.shuffle(ports)
    for port in ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no port is free in {PORTS}")


def shifted_clock(seconds):
    """The environment in which a program's wall clock is that far ahead, and its other clocks run as they do."""
    found = sorted(glob.glob("/usr/lib/*/faketime/libfaketime.so.1"))
    assert found, "libfaketime is missing: install faketime"
    return {"LD_PRELOAD": found[0], "FAKETIME": f"{seconds:+d}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


class Process:
    def __init__(self, command, log, cwd=None, env=None):
        self.log = pathlib.Path(log)
        self.lines = []
        self.is_told = False
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
        """Asks it to stop, once: a second signal would stop it hard."""
        if self.alive() and not self.is_told:
            self.is_told = True
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

    def cpu_seconds(self):
        """How long it has computed so far."""
        fields = pathlib.Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        user, system = int(fields[11]), int(fields[12])
        return (user + system) / os.sysconf("SC_CLK_TCK")

    def tail(self):
        return self.log.read_text(errors="replace")[-4000:]


class Service:
    """One `errand serve` on one data directory; it can be stopped, killed and started again."""

    def __init__(self, folder, *switches):
        self.folder = pathlib.Path(folder)
        self.data_dir = self.folder / "data"
        self.log = self.folder / "stderr.log"
        self.switches = switches
        # Seconds by which its wall clock is ahead.
        self.clock_ahead = 0
        self.process = None
        self.clients = []
        self.tokens = {}

    def start(self, http="127.0.0.1:0", grpc="127.0.0.1:0"):
        return self.launch(
            "serve", "--http", http, "--grpc", grpc, "--data-dir", str(self.data_dir), *self.switches
        )

    def launch(self, *arguments, env=None):
        """Starts the program with just these arguments and waits until it is ready."""
        env = env or clean_environment()
        if self.clock_ahead:
            env = {**env, **shifted_clock(self.clock_ahead)}
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

    def _key(self):
        """Where `errand token` finds the key that this service believes."""
        if "--auth-secret-file" in self.switches:
            return ("--auth-secret-file", self.switches[self.switches.index("--auth-secret-file") + 1])
        return ("--data-dir", str(self.data_dir))

    def token(self, subject, *permissions, channels=(), expires_in=None):
        key = (subject, permissions, tuple(channels), expires_in)
        if key not in self.tokens:
            command = ["token", *self._key(), "--subject", subject]
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


class Fleet:
    """Several nodes on one database and one Redis. Whoever asks for an address gets the next node's in turn."""

    def __init__(self, folder, switches, nodes=3, clocks=()):
        self.folder = pathlib.Path(folder)
        secret = self.folder / "secret"
        secret.write_text(secrets.token_hex(32))
        shared = (*switches, "--auth-secret-file", str(secret))
        self.nodes = []
        for number in range(nodes):
            home = self.folder / f"node-{number}"
            home.mkdir()
            self.nodes.append(Service(home, *shared))
        for node, ahead in zip(self.nodes, clocks):
            node.clock_ahead = ahead
        self.turn = itertools.cycle(self.nodes)
        self.data_dir = self.folder

    def start(self):
        # Addresses that a node can have again.
        ports = iter(free_ports(2 * len(self.nodes)))
        addresses = [[f"127.0.0.1:{next(ports)}" for _ in range(2)] for _ in self.nodes]
        starts = [threading.Thread(target=node.start, args=pair) for node, pair in zip(self.nodes, addresses)]
        for start in starts:
            start.start()
        for start in starts:
            start.join()
        assert all(node.process and node.process.alive() for node in self.nodes), self.tail()
        return self

    def leader(self):
        """The node that leads: its name has its process id."""
        holder = self.nodes[0].rest().ok("GET", "/api/jobs/stats")["data"]["scheduler"]["lock_holder"]
        return next((node for node in self.nodes if f"-{node.process.child.pid}-" in (holder or "")), None)

    def stop(self):
        for node in self.nodes:
            node.process.terminate()
        return [node.stop() for node in self.nodes]

    @property
    def http(self):
        return next(self.turn).http

    @property
    def grpc_address(self):
        return next(self.turn).grpc_address

    @property
    def process(self):
        return self

    def alive(self):
        return any(node.process and node.process.alive() for node in self.nodes)

    def kill(self):
        for node in self.nodes:
            if node.process and node.process.alive():
                node.kill()

    def tail(self):
        return "\n".join(node.process.tail() for node in self.nodes if node.process)

    def token(self, *arguments, **options):
        return self.nodes[0].token(*arguments, **options)

    def rest(self, subject="operator", *permissions):
        return next(self.turn).rest(subject, *permissions)

    def grpc(self, subject="operator", *permissions, token=None):
        return next(self.turn).grpc(subject, *permissions, token=token)


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
