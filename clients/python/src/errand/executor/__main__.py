"""`python -m errand.executor FD`: one executor at the other end of an inherited socket."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import traceback
from importlib.machinery import SourceFileLoader
from types import ModuleType

from ..registry import MAIN_ALIAS, Catalogue, Kind
from . import wire
from .loop import boot


def main() -> None:
    """Ends when the supervisor does; functions that still run then are cut off, for nobody is left to hear of them."""
    # The supervisor says when to end. Handlers rather than SIG_IGN, which programs that functions start would inherit.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    sock = socket.socket(fileno=int(sys.argv[1]))
    try:
        boot(sock, load)
        status = 0
    except (BrokenPipeError, ConnectionResetError):
        status = 0  # The supervisor is gone.
    except BaseException:
        traceback.print_exc()
        status = 70
    # Not `sys.exit`, which would wait for the threads of functions.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def load(order: wire.Boot) -> Catalogue:
    """Imports the modules that the runner was started with, and nothing else."""
    sys.path[:] = order.path
    modules = [
        import_main(order.main_file) if name == "__main__" else importlib.import_module(name) for name in order.modules
    ]
    return Catalogue(modules, Kind(order.default_kind))


def import_main(file: str) -> ModuleType:
    """The program's main file as a module that does not believe to be the program."""
    loader = SourceFileLoader(MAIN_ALIAS, file)
    module = ModuleType(MAIN_ALIAS)
    module.__file__ = file
    sys.modules[MAIN_ALIAS] = module
    loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
