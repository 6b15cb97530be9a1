"""The processes under test: a real `errand serve`, and runners started as their users would."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
ERRAND = os.environ.get("ERRAND_BIN") or str(REPOSITORY / "target/debug/errand")
TESTS = pathlib.Path(__file__).resolve().parent
DEADLINE = 30.0

# Short enough for a test to wait out, long enough for a busy machine.
QUICK = ("--heartbeat-interval=500ms", "--accept-timeout=2s", "--lease-ttl=3s", "--resume-window=1s")
READY = re.compile(r"^errand ready http=(\S+) grpc=(\S+)\s*$", re.MULTILINE)


def eventually(claim, check, seconds=DEADLINE, every=0.02):
    """Calls `check` until it answers something true, and answers that."""
    end = time.monotonic() + seconds
    while not (answer := check()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {claim} (last answer: {answer!r})")
        time.sleep(every)
    return answer


def environment(**more):
    """No ERRAND_ variable of whoever runs the tests reaches the programs."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ERRAND_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


class Process:
    """A child whose output is in files."""

    def __init__(self, command, folder, name, env=None):
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        with open(self.out, "ab") as out, open(self.err, "ab") as err:
            self.child = subprocess.Popen(
                command,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                env=env or environment(),
                cwd=folder,
            )

    def alive(self):
        return self.child.poll() is None

    def signal(self, number):
        self.child.send_signal(number)

    def wait(self, seconds=DEADLINE):
        return self.child.wait(seconds)

    def end(self):
        """Stops it, hard where asking is not enough."""
        if self.alive():
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running 15 s after SIGTERM\n{self.tail()}") from None

    def kill(self):
        self.child.kill()
        self.child.wait(10)

    def output(self):
        return self.out.read_text(errors="replace")

    def tail(self):
        return self.err.read_text(errors="replace")[-4000:]


class Service:
    """One `errand serve` on one data directory; it can be stopped, killed and started again."""

    def __init__(self, folder, *switches):
        self.folder = folder
        self.switches = switches
        self.starts = 0
        self.tokens = {}
        self.address = "127.0.0.1:0"

    def start(self):
        self.starts += 1
        command = [
            ERRAND,
            "serve",
            "--http",
            "off",
            "--grpc",
            self.address,
            "--data-dir",
            "data",
            *self.switches,
        ]
        self.process = Process(command, self.folder, f"service-{self.starts}")
        ready = eventually("the service is ready", self._ready)
        self.address = ready.group(2)
        return self

    def _ready(self):
        assert self.process.alive(), self.process.tail()
        return READY.search(self.process.output())

    @property
    def url(self):
        return f"http://{self.address}"

    def token(self, subject, *permissions):
        if (subject, permissions) not in self.tokens:
            command = [ERRAND, "token", "--data-dir", "data", "--subject", subject]
            for permission in permissions:
                command += ["--permission", permission]
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=60,
                cwd=self.folder,
                env=environment(),
                check=True,
            )
            self.tokens[(subject, permissions)] = done.stdout.strip()
        return self.tokens[(subject, permissions)]

    @property
    def operator(self):
        return self.token("operator", "manage_jobs")

    @property
    def run_jobs(self):
        return self.token("runner", "run_jobs")


class Runner(Process):
    """`errand-runner` with the job functions of `functions.py`."""

    serial = 0

    def __init__(self, folder, server, token, channel, *switches, modules=("functions",), **variables):
        Runner.serial += 1
        self.runner_id = f"py-{os.getpid()}-{Runner.serial}"
        command = [sys.executable, "-m", "errand.runner.cli", *modules, "--channel", channel]
        command += ["--runner-id", self.runner_id, "--server", server, "--log-level", "debug", *switches]
        env = environment(ERRAND_TOKEN=token, PYTHONPATH=str(TESTS), **variables)
        super().__init__(command, folder, self.runner_id, env=env)

    def executors(self):
        """The pids of its executor processes."""
        with contextlib.suppress(FileNotFoundError):
            path = f"/proc/{self.child.pid}/task/{self.child.pid}/children"
            return [int(pid) for pid in pathlib.Path(path).read_text().split()]
        return []
