"""Sends one mail."""

from __future__ import annotations

import os
import smtplib
import threading
from email.message import EmailMessage

import errand

TIMEOUT_SECONDS = 30
_own = threading.local()


def send(job: errand.RunningJob) -> str:
    """Sends to `payload["to"]`. What the server refuses for good fails for good; the rest is tried again."""
    mail = EmailMessage()
    mail["Message-ID"] = f"<{job.id}@errand.example>"
    mail["From"] = "news@errand.example"
    mail["To"] = job.payload["to"]
    mail["Subject"] = job.payload["subject"]
    mail.set_content(job.payload["text"])
    try:
        connection().send_message(mail)
    except smtplib.SMTPRecipientsRefused as error:
        ((code, _),) = error.recipients.values()
        raise (errand.Permanent if code >= 500 else errand.Retry)(f"refused with {code}") from error
    except (OSError, smtplib.SMTPException):
        _own.connection = None
        raise
    return "sent"


def connection() -> smtplib.SMTP:
    """The own connection of this thread to the mail server."""
    if getattr(_own, "connection", None) is None:
        host, _, port = os.environ["SMTP_SERVER"].rpartition(":")
        _own.connection = smtplib.SMTP(host, int(port), timeout=TIMEOUT_SECONDS)
    open_connection: smtplib.SMTP = _own.connection
    return open_connection
