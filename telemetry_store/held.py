"""A connection that is held over many transactions."""

from contextlib import suppress

import asyncpg

HeldProxy = asyncpg.pool.PoolConnectionProxy


class HeldConnection:
    """One connection of a pool, taken when first needed and again when it was lost.

    Args:
        pool: it is taken from and given back to.
    """

    def __init__(self, *, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._held: HeldProxy | None = None

    @property
    def lost(self) -> bool:
        """Say whether there is none, or it is closed."""
        try:
            return self._held is None or self._held.is_closed()
        except asyncpg.InterfaceError:
            return True  # The pool takes a connection back by itself when the server closes it.

    async def get(self) -> HeldProxy:
        """Return the connection."""
        if self._held is None or self.lost:
            await self.give_back()
            self._held = await self._pool.acquire()
        return self._held

    async def give_back(self) -> None:
        """Let the pool have it, which ends everything of its session."""
        if self._held is not None:
            held, self._held = self._held, None
            await self._pool.release(held)

    async def cut_off(self) -> None:
        """Close it without a word, whatever it is doing."""
        if self._held is not None:
            with suppress(asyncpg.InterfaceError):
                self._held.terminate()
        await self.give_back()
