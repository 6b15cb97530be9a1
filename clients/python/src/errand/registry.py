"""Which functions a runner may call, and how each is to be executed.

A function is callable for one of two reasons: somebody decorated it with `job`, or it is a public function of one of
the modules that the runner was started with. A job names its function in text that comes from elsewhere, so nothing
here imports a module, follows an attribute or calls anything because a job says so.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import Any, TypeVar, cast, overload

Function = TypeVar("Function", bound=Callable[..., Any])

MAIN_ALIAS = "__errand_main__"
"""What `__main__` is called in an executor: it is imported there, and must not run as a program."""


class Kind(str, Enum):
    """Where a function is executed."""

    THREAD = "thread"
    PROCESS = "process"
    COROUTINE = "coroutine"


@dataclass(frozen=True)
class Entry:
    """A function that a job may name."""

    function: Callable[..., Any]
    kind: Kind


class UnknownFunction(LookupError):
    """No function of this name may be called."""


_decorated: dict[str, tuple[Callable[..., Any], bool]] = {}


@overload
def job(name: Function, /) -> Function: ...
@overload
def job(name: str | None = None, /, *, process: bool = False) -> Callable[[Function], Function]: ...
def job(name: Any = None, /, *, process: bool = False) -> Any:
    """Lets runners call a function under `name`; without one, under its module and name.

    The function takes one argument, a `RunningJob`, and its return value is the job's result. With `process=True`
    each execution has a process to itself: for work that keeps the processor busy.

    ```python
    @errand.job("thumbnails.make", process=True)
    def make_thumbnail(job: errand.RunningJob) -> str: ...
    ```
    """
    if callable(name):
        return _register(name, None, process=False)
    return lambda function: _register(function, name, process=process)


def _register(function: Function, name: str | None, *, process: bool) -> Function:
    if process and inspect.iscoroutinefunction(function):
        raise TypeError(f"{function.__qualname__} is a coroutine function: it runs on a loop, not in a process")
    name = name or f"{_public(function.__module__)}.{function.__qualname__}"
    before = _decorated.get(name)
    if before is not None and _origin(before[0]) != _origin(function):
        raise ValueError(f"two functions want to be job {name!r}: {_origin(before[0])} and {_origin(function)}")
    _decorated[name] = (function, process)
    return function


def _origin(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"


def _public(module: str) -> str:
    return "__main__" if module == MAIN_ALIAS else module


class Catalogue:
    """Every function that one runner may call, by the name that jobs use."""

    def __init__(self, modules: Iterable[ModuleType], default: Kind = Kind.THREAD) -> None:
        """Lists the functions of `modules`, and of those of their submodules that they have imported themselves."""
        roots = tuple(module.__name__ for module in modules)
        within = [
            module
            for name, module in sorted(sys.modules.items())
            if any(name == root or name.startswith(root + ".") for root in roots)
        ]
        self._entries: dict[str, Entry] = {}
        for module in within:
            for name, function in vars(module).items():
                if not name.startswith("_") and _is_own_function(function, module):
                    path = f"{_public(module.__name__)}.{name}"
                    self._entries[path] = Entry(function, _kind(function, default))
        names = {module.__name__ for module in within}
        for name, (function, process) in _decorated.items():
            if function.__module__ in names:
                self._entries[name] = Entry(function, _kind(function, Kind.PROCESS if process else default))
        # A decorated function keeps its kind under its dotted path too.
        kinds = {id(entry.function): entry.kind for name, entry in self._entries.items() if name in _decorated}
        for path, entry in self._entries.items():
            kind = kinds.get(id(entry.function), entry.kind)
            if kind is not entry.kind:
                self._entries[path] = Entry(entry.function, kind)

    def find(self, name: str) -> Entry:
        """The function called `name`, or `UnknownFunction`."""
        entry = self._entries.get(name)
        if entry is None:
            raise UnknownFunction(f"this runner has no function {name!r}")
        return entry

    def kinds(self) -> dict[str, str]:
        """The kind of every function, by name."""
        return {name: entry.kind.value for name, entry in self._entries.items()}


def _is_own_function(value: object, module: ModuleType) -> bool:
    """Whether `module` defines it: what it merely imported belongs to others."""
    return inspect.isfunction(value) and value.__module__ == module.__name__


def _kind(function: Callable[..., Any], default: Kind) -> Kind:
    return Kind.COROUTINE if inspect.iscoroutinefunction(function) else default


def name_of(function: str | Callable[..., Any]) -> str:
    """The name under which jobs call a function."""
    if isinstance(function, str):
        return function
    for name, (decorated, _) in _decorated.items():
        if decorated is function:
            return name
    return f"{_public(function.__module__)}.{cast(Any, function).__qualname__}"
