"""`errand-runner`: a runner as a command."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from .. import __version__
from ..endpoint import SERVER_DEFAULT, Tls
from . import Runner, RunnerError

EXIT_USAGE = 64
EXIT_UNAVAILABLE = 69

_EPILOG = """\
Every switch but --version is also a variable: --capacity is ERRAND_CAPACITY, and several channels are separated by
commas. SIGTERM and SIGINT let what runs finish, a second one hands back what runs; SIGHUP loads the modules afresh.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs until it is told to stop. Exits 0 then, 64 for a bad command line, 69 where the service refuses it."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    # As `python -m` does it: modules beside where one stands are found.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        runner = _runner(options)
    except (ValueError, OSError) as error:
        print(f"errand-runner: {error}", file=sys.stderr)
        return EXIT_USAGE
    try:
        runner.run()
    except RunnerError as error:
        print(f"errand-runner: {error}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    # It has left. A signal that comes while the interpreter ends must not make a failure of that.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return 0


def _runner(options: argparse.Namespace) -> Runner:
    tls = None
    if options.tls_ca or options.tls_cert or options.tls_key:
        tls = Tls(options.tls_ca, options.tls_cert, options.tls_key)
    token: str | Callable[[], str] | None = options.token
    if options.token_file:
        # Read for every connection, so that whoever renews it need not start the runner again.
        file = Path(options.token_file)
        file.read_text()
        token = file.read_text
    return Runner(
        options.module or _listed("ERRAND_MODULES") or [],
        server=options.server,
        token=token,
        channels=options.channel or _listed("ERRAND_CHANNELS") or ["default"],
        capacity=options.capacity,
        processes=options.processes,
        runner_id=options.runner_id,
        tls=tls,
    )


def _listed(variable: str) -> list[str]:
    return [part.strip() for part in os.environ.get(variable, "").split(",") if part.strip()]


def _count(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    environment = os.environ
    parser = _Parser(prog="errand-runner", description="Runs the job functions of Python modules.", epilog=_EPILOG)
    add = parser.add_argument
    add("module", nargs="*", help="a module with job functions, e.g. myapp.jobs")
    add(
        "--channel",
        action="append",
        metavar="C",
        help="take jobs of this channel; may be repeated (default: default)",
    )
    add(
        "--capacity",
        type=_count,
        metavar="N",
        default=environment.get("ERRAND_CAPACITY") or None,
        help="how many jobs to hold at once (default: 10, or as many as processes)",
    )
    add(
        "--processes",
        type=_count,
        metavar="N",
        default=environment.get("ERRAND_PROCESSES") or None,
        help="run plain functions in processes, N at once, rather than on threads",
    )
    add(
        "--runner-id",
        metavar="ID",
        default=environment.get("ERRAND_RUNNER_ID") or None,
        help="unique among live runners (default: host and pid)",
    )
    add(
        "--server",
        metavar="URL",
        default=environment.get("ERRAND_SERVER") or SERVER_DEFAULT,
        help="where the service listens for gRPC; several, separated by commas, are tried in turn",
    )
    add(
        "--token",
        metavar="T",
        default=environment.get("ERRAND_TOKEN", ""),
        help="the token to show; it must allow run_jobs",
    )
    add(
        "--token-file",
        metavar="FILE",
        default=environment.get("ERRAND_TOKEN_FILE") or None,
        help="a file with the token, read again for every connection",
    )
    add(
        "--tls-ca",
        metavar="FILE",
        default=environment.get("ERRAND_TLS_CA") or None,
        help="PEM file of the authority that signed the server's certificate",
    )
    add(
        "--tls-cert",
        metavar="FILE",
        default=environment.get("ERRAND_CLIENT_TLS_CERT") or None,
        help="PEM file of this runner's certificate, for mutual TLS",
    )
    add(
        "--tls-key",
        metavar="FILE",
        default=environment.get("ERRAND_CLIENT_TLS_KEY") or None,
        help="PEM file of its private key",
    )
    add(
        "--log-level",
        default=environment.get("ERRAND_LOG_LEVEL") or "info",
        choices=["debug", "info", "warning", "error"],
        help="(default: info)",
    )
    add("--version", action="version", version=f"errand-runner {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
