"""Publishes a job for every picture of a folder, and waits for all of them."""

from __future__ import annotations

import argparse
from pathlib import Path

import errand

BATCH_MAX = 1000
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def main() -> None:
    """Prints a line for each picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--edge", type=int, default=320)
    options = parser.parse_args()
    pictures = [path for path in sorted(options.source.rglob("*")) if path.suffix.lower() in SUFFIXES]
    specs = [spec(path.resolve(), options.target.resolve() / path.name, options.edge) for path in pictures]
    with errand.Client() as client:
        for start in range(0, len(specs), BATCH_MAX):
            receipts = client.publish_batch(specs[start : start + BATCH_MAX])
            for picture, receipt in zip(pictures[start:], receipts, strict=False):
                try:
                    done = client.result(receipt.id)
                    print(f"{picture}: {done['width']}x{done['height']}")
                except errand.JobEnded as error:
                    print(f"{picture}: {error}")


def spec(source: Path, target: Path, edge: int) -> errand.JobSpec:
    """The job for one picture; the same picture in the same size is the same job."""
    return errand.JobSpec(
        "pictures.resize",
        {"source": str(source), "target": str(target), "edge": edge},
        channel="pictures",
        max_exec_seconds=60,
        idempotency_key=f"{source.name}-{source.stat().st_mtime_ns}-{edge}",
    )


if __name__ == "__main__":
    main()
