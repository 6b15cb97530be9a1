"""Publishes the report of a day for the midnight after it."""

from __future__ import annotations

import argparse
from datetime import date, datetime, time, timedelta
from pathlib import Path

from jobs import schedule


def main() -> None:
    """Prints the job's id."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sales", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--day", type=date.fromisoformat, default=date.today(), help="today unless it is given")
    parser.add_argument("--at", type=datetime.fromisoformat, help="another time than the next midnight")
    options = parser.parse_args()
    midnight = datetime.combine(options.day + timedelta(days=1), time.min).astimezone()
    payload = {
        "day": options.day.isoformat(),
        "sales": str(options.sales.resolve()),
        "folder": str(options.folder.resolve()),
    }
    print(schedule(payload, options.at or midnight))


if __name__ == "__main__":
    main()
