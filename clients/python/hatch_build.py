"""Makes the gRPC stubs out of the contract whenever the package is built or installed for editing."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StubsHook(BuildHookInterface[Any]):
    """Runs before every build of a wheel or an sdist, editable ones included."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Writes `src/errand/v1/*_pb2.py` and `.pyi`; in an unpacked sdist they are there already."""
        root = Path(self.root)
        protos = root.parent.parent / "proto"
        sources = sorted(protos.glob("errand/v1/*.proto"))
        if sources:
            generate(protos, sources, root / "src")
        elif not list((root / "src/errand/v1").glob("*_pb2.py")):
            raise RuntimeError(f"neither {protos} nor stubs made from it: build from the repository or an sdist")


def generate(protos: Path, sources: list[Path], target: Path) -> None:
    """Compiles the contract into `target`."""
    from grpc_tools import protoc

    well_known = importlib.resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"-I{protos}", f"-I{well_known}", f"--python_out={target}", f"--pyi_out={target}"]
    if protoc.main([*arguments, *map(str, sources)]) != 0:
        raise RuntimeError("protoc refused the contract")
