"""Takes a group through one transaction, and finds out how it ended."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import asyncpg
import structlog

from meshkit.db import DATABASE_ERRORS
from telemetry_store import cursors
from telemetry_store.batch import Batch, Prepared
from telemetry_store.commit import InstanceClosedError, Prepare, Stored, store_group
from telemetry_store.commit_numbers import CommitNumbers
from telemetry_store.cursors import CursorKey
from telemetry_store.device_sets import DeviceSetIds, DeviceSets
from telemetry_store.held import HeldConnection, HeldProxy
from telemetry_store.instances import Registration, was_committed

_log = structlog.get_logger()
_CONTENT_CLASS = "22"  # SQLSTATE class "data exception"
_ATTEMPTS = 3  # A new instance may be closed too, but hardly twice in a row.
_RESOLVE_WITHIN_S = 10.0
_RESOLVE_EVERY_S = 0.2
_CURSORS_REMEMBERED = 50_000


class ContentRefusedError(Exception):
    """PostgreSQL refuses a value in the group; nothing was committed."""


class TransientError(Exception):
    """The group was not committed, or nobody can tell; its batches may be sent again."""


class Committer:
    """Commits groups one at a time over a connection that it holds.

    Args:
        pool: of the ingest role.
        registration: this process's instance.
        prepare: builds rows.
    """

    def __init__(self, *, pool: asyncpg.Pool, registration: Registration, prepare: Prepare) -> None:
        self._pool = pool
        self._registration = registration
        self._prepare = prepare
        self._held = HeldConnection(pool=pool)
        self._existing: OrderedDict[CursorKey, None] = OrderedDict()
        self._device_sets = DeviceSets()

    async def __aenter__(self) -> Self:
        """Connect when the first group comes."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the connection back."""
        await self._held.give_back()

    async def commit(self, batches: Sequence[Batch], prepared: Prepared | None) -> Stored:
        """Commit a group; its answers hold from now on.

        Raises:
            ContentRefusedError: SQLSTATE 22xxx, or a value that cannot be sent at all.
            TransientError: anything else.
        """
        try:
            return await self._commit(batches, prepared)
        except asyncpg.PostgresError as error:
            if (error.sqlstate or "").startswith(_CONTENT_CLASS):
                raise ContentRefusedError(str(error)) from error
            raise TransientError(f"{type(error).__name__}: {error}") from error
        except DATABASE_ERRORS as error:
            # asyncpg's own refusal to send an argument is both of these.
            if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
                raise ContentRefusedError(str(error)) from error
            raise TransientError(f"{type(error).__name__}: {error}") from error
        except UnicodeEncodeError as error:
            raise ContentRefusedError(str(error)) from error

    def forget(self, key: CursorKey) -> None:
        """Look whether a cursor exists before it is used again."""
        self._existing.pop(key, None)

    async def _commit(self, batches: Sequence[Batch], prepared: Prepared | None) -> Stored:
        for _ in range(_ATTEMPTS):
            instance = await self._registration.instance()
            connection = await self._held.get()
            await self._ensure_cursors(connection, batches)
            device_sets = await self._device_sets.resolve(connection, [batch.request for batch in batches])
            try:
                return await self._transact(connection, batches, prepared, instance, device_sets)
            except InstanceClosedError:
                _log.warning("instance was closed", instance=instance)
                await self._registration.renew()
        raise TransientError(f"{_ATTEMPTS} instances were closed one after another")

    async def _transact(
        self,
        connection: HeldProxy,
        batches: Sequence[Batch],
        prepared: Prepared | None,
        instance: int,
        device_sets: DeviceSetIds,
    ) -> Stored:
        transaction = connection.transaction()
        try:
            # A BEGIN without an answer may have begun all the same. On such a connection the
            # next transaction would be a savepoint, and its "commit" would commit nothing.
            await transaction.start()
            stored = await store_group(
                connection, batches, prepared, self._prepare, instance=instance, device_sets=device_sets
            )
        except Exception:
            await self._roll_back(transaction)
            raise
        except BaseException:
            await self._held.cut_off()  # Cancelled: there is no time to ask.
            raise
        try:
            await transaction.commit()
        except DATABASE_ERRORS as error:
            _log.warning("the outcome of a commit is unknown", error=repr(error))
            await self._held.cut_off()
            if stored.commit is None or not await self._took_place(stored.commit.numbers):
                raise
        return stored

    async def _roll_back(self, transaction: asyncpg.transaction.Transaction) -> None:
        """Leave no transaction open: what cannot be rolled back is cut off, which does it too."""
        try:
            await transaction.rollback()
        except DATABASE_ERRORS:
            await self._held.cut_off()

    async def _took_place(self, numbers: CommitNumbers) -> bool:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + _RESOLVE_WITHIN_S
        while True:
            try:
                async with self._pool.acquire() as connection:
                    took_place = await was_committed(connection, numbers)
                _log.info("the outcome of the commit was found", took_place=took_place)
                return took_place
            except DATABASE_ERRORS:
                if loop.time() > give_up_at:
                    raise
            await asyncio.sleep(_RESOLVE_EVERY_S)

    async def _ensure_cursors(self, connection: HeldProxy, batches: Sequence[Batch]) -> None:
        absent: dict[CursorKey, str] = {}
        for batch in batches:
            key = batch.cursor_key
            if key is not None and key not in self._existing:
                absent.setdefault(key, batch.request.principal)
        if not absent:
            return
        await cursors.ensure(connection, absent)
        self._existing.update(dict.fromkeys(absent))
        while len(self._existing) > _CURSORS_REMEMBERED:
            self._existing.popitem(last=False)
