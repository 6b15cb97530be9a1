"""Publishes so many mails in batches, and tells how they get on."""

from __future__ import annotations

import sys
import time

import errand

BATCH_MAX = 1000


def main() -> None:
    """`publish.py COUNT`."""
    count = int(sys.argv[1])
    unfinished = errand.Filters(channel="emails", status=["pending", "running"])
    with errand.Client() as client:
        for start in range(0, count, BATCH_MAX):
            client.publish_batch(mail(number) for number in range(start, min(start + BATCH_MAX, count)))
        while left := client.page(unfinished, limit=1, count=True).total:
            print(f"{left} to go")
            time.sleep(0.5)
        failed = client.page(errand.Filters(channel="emails", status="failed"), limit=1, count=True).total
        print(f"done, {failed} failed")


def mail(number: int) -> errand.JobSpec:
    """The job for one mail."""
    payload = {"to": f"reader-{number}@errand.example", "subject": f"Issue {number}", "text": "Good news."}
    return errand.JobSpec("jobs.send", payload, channel="emails", max_retries=10, expires_in=86_400)


if __name__ == "__main__":
    main()
