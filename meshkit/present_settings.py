"""Settings as they are now: what is replaced from time to time, such as a database's password."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import structlog
from pydantic import ValidationError

from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.config import Settings
from meshkit.secret_places import SettingsUnreadable

_log = structlog.get_logger()
REREAD_EVERY_S = 30
_S = TypeVar("_S", bound=Settings)
_Value = TypeVar("_Value")


class PresentSettings(Generic[_S]):
    """Reads settings anew when somebody asks, every 30 s at most; what cannot be read stays as it was.

    Args:
        settings: as they were read at the start.
        clock: tells how old they are.
    """

    def __init__(self, settings: _S, *, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._read_us = clock.now_us()

    def of(self, pick: Callable[[_S], _Value]) -> Callable[[], Awaitable[_Value]]:
        """Return what tells one value of them as it is now."""

        async def present() -> _Value:
            return pick(await self._present())

        return present

    async def _present(self) -> _S:
        now_us = self._clock.now_us()
        if now_us - self._read_us >= REREAD_EVERY_S * MICROS_PER_SECOND:
            self._read_us = now_us  # Who asks meanwhile takes what there is.
            try:
                self._settings = await asyncio.to_thread(self._settings.reread)
            except SettingsUnreadable as unreadable:
                _log.warning("settings not read anew", error=str(unreadable))
            except ValidationError as invalid:
                # Without their values, which its text holds.
                wrong = [str(problem["loc"][0]) for problem in invalid.errors() if problem["loc"]]
                _log.warning("settings not read anew", wrong=wrong)
        return self._settings
