"""When to try again: at once first, for the resume window is short, then ever slower, with jitter."""

from __future__ import annotations

FIRST_SECONDS = 0.05
CAP_SECONDS = 5.0


class Backoff:
    """Jittered exponential backoff; the first attempt waits for nothing."""

    def __init__(self) -> None:
        self._attempts = 0

    def next_delay(self, chance: float) -> float:
        """Seconds to wait before the next attempt; `chance` is evenly spread over 0 to 1."""
        attempt = self._attempts
        self._attempts += 1
        if attempt == 0:
            return 0.0
        # 50 ms doubled seven times passes the cap; the bound on the exponent only keeps the number small.
        full = min(FIRST_SECONDS * 2.0 ** min(attempt - 1, 16), CAP_SECONDS)
        # Half fixed, half chance: runners of a dead node spread out, and none waits for nearly nothing.
        return float(full * (0.5 + chance / 2))

    def reset(self) -> None:
        """The next attempt is the first again."""
        self._attempts = 0
