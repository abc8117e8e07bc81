"""Warnings about what may come with every batch, a few lines in place of a flood."""

import asyncio
from collections import Counter
from collections.abc import Callable

_SUMMARY_S = 60.0


class Recurring:
    """Warns at once the first time, and then sums up about once a minute.

    Args:
        warn: called with what came since the last time, and how often or how much of it.
    """

    def __init__(self, warn: Callable[[Counter[str]], None]) -> None:
        self._warn = warn
        self._since: Counter[str] = Counter()
        self._summary: asyncio.TimerHandle | None = None

    def note(self, what: str, amount: int = 1) -> None:
        """Take note of it, inside of an event loop."""
        self._since[what] += amount
        if self._summary is None:
            self._sum_up()

    def close(self) -> None:
        """Warn of the rest, and no more."""
        if self._summary is not None:
            self._summary.cancel()
            self._tell()

    def _sum_up(self) -> None:
        # A minute without it, and the next one is told at once again.
        is_going_on = bool(self._since)
        self._summary = (
            asyncio.get_running_loop().call_later(_SUMMARY_S, self._sum_up) if is_going_on else None
        )
        self._tell()

    def _tell(self) -> None:
        since, self._since = self._since, Counter()
        if since:
            self._warn(since)
