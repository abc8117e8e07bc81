"""Policies of tenants: of each kind one row per tenant, with a version that its writers must know."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

import asyncpg

from meshkit.clock import from_datetime
from meshkit.db import Connection, connected
from meshkit.errors import Aborted
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

# Longer than a transaction of the ingest role may last: what was written is seen by then.
_WRITTEN_WITHIN = timedelta(seconds=45)
_READ = "SELECT {all_columns} FROM telemetry.{name}"
_WRITE = """
INSERT INTO telemetry.{name} AS policy (tenant_id, {columns})
VALUES ($1, {values})
ON CONFLICT (tenant_id) DO UPDATE
SET {changes}, version = policy.version + 1, update_time = clock_timestamp()
WHERE policy.version = $2
RETURNING {all_columns}
"""


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """A tenant's policy; what a kind has of its own is None where it is as the installation is set.

    Attributes:
        tenant: whose.
        version: raised by every write; 0: never written.
        update_us: when it was written, microseconds since the epoch; 0: never.
    """

    tenant: str
    version: int = 0
    update_us: int = 0

    @property
    def etag(self) -> str:
        """Return the version as the contract writes it."""
        return f'"{self.version}"'


_Row = TypeVar("_Row", bound=PolicyRow)


class PolicyTable(Generic[_Row]):
    """Where the policies of a kind are written.

    Args:
        name: of the kind and of its table, such as ingest_policy.
        row: makes a policy.
        columns: of the table, beside tenant_id, version and update_time.
        fields: returns what a record says, by names of the policy's fields.
        values: returns what a policy says, by columns.
    """

    def __init__(
        self,
        name: str,
        row: type[_Row],
        *,
        columns: Sequence[str],
        fields: Callable[[asyncpg.Record], Mapping[str, Any]],
        values: Callable[[_Row], Sequence[object]],
    ) -> None:
        self._name = name
        self._row = row
        self._fields = fields
        self._values = values
        all_columns = ", ".join(["tenant_id", "version", "update_time", *columns])
        self._read = _READ.format(name=name, all_columns=all_columns)
        self._write = _WRITE.format(
            name=name,
            all_columns=all_columns,
            columns=", ".join(columns),
            values=", ".join(f"${place}" for place in range(3, 3 + len(columns))),
            changes=", ".join(f"{column} = excluded.{column}" for column in columns),
        )

    async def read(self, connection: Connection, tenant: str) -> _Row:
        """Return a tenant's policy, also when it was never written.

        Args:
            connection: of a role that sees the tenant.
            tenant: whose.
        """
        record = await connection.fetchrow(f"{self._read} WHERE tenant_id = $1", tenant)
        return self._row(tenant) if record is None else self._of(record)

    async def read_all(self, pool: asyncpg.Pool) -> list[_Row]:
        """Return the policies of all tenants that have one.

        Args:
            pool: of a role that sees all tenants.
        """
        return list(map(self._of, await pool.fetch(self._read)))

    async def read_changed(self, pool: asyncpg.Pool, update_us: int) -> list[_Row]:
        """Return all policies written since about a moment; 0: all.

        Some that were written before it come again, since writes become visible in any order.

        Args:
            pool: of a role that sees all tenants.
            update_us: microseconds since the epoch.
        """
        changed = "update_time > timestamptz 'epoch' + $1 * interval '1 microsecond' - $2::interval"
        records = await pool.fetch(f"{self._read} WHERE {changed}", update_us, _WRITTEN_WITHIN)
        return list(map(self._of, records))

    async def write(self, connection: Connection, row: _Row) -> _Row:
        """Write what was read, changed; returns it with its new version and time.

        Args:
            connection: of the ingest role.
            row: the policy.

        Raises:
            Aborted: ETAG_MISMATCH, it was written since.
        """
        record = await connection.fetchrow(self._write, row.tenant, row.version, *self._values(row))
        if record is None:
            raise self._changed()
        return self._of(record)

    def require_etag(self, row: _Row, etag: str) -> None:
        """Check that an etag, when there is one, is that of a policy.

        Raises:
            Aborted: ETAG_MISMATCH.
        """
        if etag and etag != row.etag:
            raise self._changed()

    def _changed(self) -> Aborted:
        return Aborted(
            f"the {self._name.replace('_', ' ')} was changed by somebody else; read it again",
            reason=ErrorReason.ERROR_REASON_ETAG_MISMATCH,
        )

    def _of(self, record: asyncpg.Record) -> _Row:
        return self._row(
            tenant=record["tenant_id"],
            version=record["version"],
            update_us=from_datetime(record["update_time"]),
            **self._fields(record),
        )


class PolicyStore(Generic[_Row]):
    """Reads and writes policies of a kind.

    Args:
        pool: of the ingest role.
        table: of the kind.
    """

    def __init__(self, *, pool: asyncpg.Pool, table: PolicyTable[_Row]) -> None:
        self._pool = pool
        self._table = table

    async def read(self, tenant: str) -> _Row:
        """Return a tenant's policy, also when it was never written.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        async with connected(self._pool) as connection:
            return await self._table.read(connection, tenant)

    async def write(self, row: _Row) -> _Row:
        """Write what `read` returned, changed; returns it with its new version and time.

        Raises:
            Aborted: ETAG_MISMATCH, it was written since.
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        async with connected(self._pool) as connection:
            return await self._table.write(connection, row)

    async def changed_since(self, update_us: int) -> list[_Row]:
        """Return all policies written since about a moment; 0: all. Some from before it come again.

        Raises:
            asyncpg.PostgresError, asyncpg.InterfaceError, OSError: PostgreSQL is away.
        """
        return await self._table.read_changed(self._pool, update_us)
