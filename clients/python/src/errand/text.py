"""JSON and text as the contract wants them: UTF-8, no NaN, nothing longer than is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

ERROR_MAX_BYTES = 16 * 1024
STACK_TRACE_MAX_BYTES = 64 * 1024
LOG_MESSAGE_MAX_BYTES = 16 * 1024
LOG_META_MAX_BYTES = 16 * 1024
METADATA_MAX_BYTES = 256 * 1024
RESULT_MAX_BYTES = 4 * 1024 * 1024
"""More than a service takes unless it was told otherwise, and small enough that a message of results passes."""

_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_escaped = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode
parse: Callable[[str], Any] = json.JSONDecoder().decode
"""From JSON text to a value."""


def to_json(value: Any) -> str:
    """A value as JSON text; `TypeError` or `ValueError` where JSON has no such value."""
    text = _compact(value)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair is no UTF-8, but JSON can spell it.
        return _escaped(value)
    return text


def object_to_json(name: str, value: Any) -> str:
    """A dict as JSON text; `TypeError` or `ValueError` naming the argument otherwise."""
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be a dict, not {type(value).__name__}")
    try:
        return to_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise type(error)(f"{name} cannot be written as JSON: {error}") from error


def cut(text: str, max_bytes: int) -> str:
    """The beginning of a text that fits, as valid UTF-8."""
    if len(text) * 4 <= max_bytes and text.isascii():
        return text
    return text.encode("utf-8", "replace")[:max_bytes].decode("utf-8", "ignore")
