"""The retry policy for failed HTTP requests: which to send again, and after how long."""

from __future__ import annotations

import email.utils
import random
from datetime import UTC, datetime

MAX_WAIT = 60.0  # seconds


def is_transient(status: int) -> bool:
    """Whether a request that failed with an HTTP status may succeed if it is sent again."""
    return status in (408, 409, 425, 429) or status >= 500


def retry_after(header: str | None) -> float:
    """Seconds to wait by a `Retry-After` header (a number or a date), at most a minute; 0 without a valid one."""
    value = header or ""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return min(MAX_WAIT, max(0.0, seconds))  # in this order NaN becomes 0


def pause(failures: int, backoff: float, server_wait: float = 0.0) -> float:
    """Seconds to wait before a request is sent again.

    Args:
        failures: Number of failures so far.
        backoff: Seconds to wait after the first failure, doubled for each next.
        server_wait: Additional seconds that the server requests; see `retry_after`.
    """
    # Jitter spreads out the requests that failed together.
    return server_wait + min(MAX_WAIT, backoff * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.5)  # noqa: S311
