"""Waiting for a state to come about."""

import asyncio
from collections.abc import Callable


class Changes:
    """Wakes whoever waits for something about a shared state, each time that the state changed."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """Say that the state changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; it is asked at every change."""
        while not condition():
            await self._changed.wait()
