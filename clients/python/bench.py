"""Measures how many jobs that do nothing a runner gets done in a second.

Starts a service of its own and one runner, which shares one processor between all of its processes where the system
lets it, stores the jobs first, and then times the runner alone. Prints one line.

    ERRAND_BIN=target/release/errand python bench.py --jobs 50000 --capacity 100
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import errand

CHANNEL = "bench"
READY = re.compile(r"errand ready http=\S+ grpc=(\S+)")
REST_SECONDS = 120.0


def nothing(job: errand.RunningJob) -> None:
    """The job: a call and its bookkeeping."""


async def nothing_async(job: errand.RunningJob) -> None:
    """The same as a coroutine."""


def main() -> None:
    """Stores jobs, runs them, and tells how fast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=50_000)
    parser.add_argument("--capacity", type=int, default=100)
    parser.add_argument("--func", choices=["nothing", "nothing_async"], default="nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="errand-bench-") as folder:
        service, url = start_service(folder)
        try:
            token = mint(folder)
            measure(options, url, token)
        finally:
            service.send_signal(signal.SIGTERM)
            service.wait()


def start_service(folder: str) -> tuple[subprocess.Popen[str], str]:
    """A service on a free port, and where it listens."""
    command = [
        errand_bin(),
        "serve",
        "--http",
        "off",
        "--grpc",
        "127.0.0.1:0",
        "--data-dir",
        f"{folder}/data",
    ]
    service = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert service.stdout is not None
    ready = READY.search(service.stdout.readline())
    if ready is None:
        raise SystemExit("the service did not start")
    return service, f"http://{ready[1]}"


def mint(folder: str) -> str:
    """A token for publishing and running."""
    command = [errand_bin(), "token", "--data-dir", f"{folder}/data", "--subject", "bench"]
    command += ["--permission", "manage_jobs", "--permission", "run_jobs"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def errand_bin() -> str:
    """The program under test."""
    return os.environ.get("ERRAND_BIN", "errand")


def measure(options: argparse.Namespace, url: str, token: str) -> None:
    """Times from the start of the first job to the end of the last, by the service's clock."""
    with errand.Client(url, token) as client:
        ids = []
        for start in range(0, options.jobs, 1000):
            size = min(1000, options.jobs - start)
            spec = errand.JobSpec(f"bench.{options.func}", {"number": 1}, channel=CHANNEL)
            ids += [receipt.id for receipt in client.publish_batch([spec] * size)]
        command = [sys.executable, "-m", "errand.runner.cli", "bench", "--channel", CHANNEL]
        command += ["--capacity", str(options.capacity), "--log-level", "warning"]
        environment = {**os.environ, "ERRAND_SERVER": url, "ERRAND_TOKEN": token}
        runner = subprocess.Popen(command, env=environment, cwd=Path(__file__).parent)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(runner.pid, {max(os.sched_getaffinity(0))})
        try:
            deadline = time.monotonic() + REST_SECONDS
            while client.page(errand.Filters(channel=CHANNEL, status=["pending", "running"]), limit=1).jobs:
                if time.monotonic() > deadline:
                    raise SystemExit(f"the jobs were not done within {REST_SECONDS} s")
                time.sleep(0.2)
        finally:
            runner.send_signal(signal.SIGTERM)
            runner.wait()
        first = client.list_jobs(errand.Filters(channel=CHANNEL, order="started_at"), limit=options.jobs)
        starts = [job.started_at for job in first if job.started_at]
        ends = [job.finished_at for job in first if job.finished_at]
        seconds = (max(ends) - min(starts)).total_seconds()
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        cost = (usage.ru_utime + usage.ru_stime) / len(ends) * 1e6
        print(
            f"{len(ends)} jobs in {seconds:.2f} s: {len(ends) / seconds:.0f} jobs/s "
            f"at capacity {options.capacity}, {cost:.0f} us of processor time a job"
        )


if __name__ == "__main__":
    main()
