"""Sums up the sales of a day, and asks for the next night's report."""

from __future__ import annotations

import collections
import csv
import os
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import errand

PATIENCE = timedelta(hours=12)


def report(job: errand.RunningJob) -> dict[str, str]:
    """Writes the totals of `payload["day"]` into `payload["folder"]`."""
    day = job.payload["day"]
    totals: dict[str, Decimal] = collections.defaultdict(Decimal)
    with open(job.payload["sales"], newline="") as rows:
        for number, row in enumerate(csv.DictReader(rows), 1):
            if row["day"] == day:
                totals[row["product"]] += Decimal(row["amount"])
            job.metadata["rows"] = number
    folder = Path(job.payload["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{job.id}"
    draft.write_text("".join(f"{product}: {total}\n" for product, total in sorted(totals.items())))
    os.replace(draft, folder / f"{day}.txt")
    schedule(job.payload | {"day": next_day(day)}, datetime.fromisoformat(job.payload["at"]) + timedelta(days=1))
    return {product: str(total) for product, total in totals.items()}


def next_day(day: str) -> str:
    """The day after."""
    return (datetime.fromisoformat(day) + timedelta(days=1)).date().isoformat()


def schedule(payload: dict[str, str], at: datetime) -> str:
    """Publishes the report for `payload["day"]`, to be made at a given time."""
    with errand.Client() as client:
        return client.publish(
            report,
            payload | {"at": at.isoformat()},
            channel="reports",
            run_at=at,
            expires_at=at + PATIENCE,
            max_retries=5,
            idempotency_key=f"nightly-report-{payload['day']}",
        ).id
