"""Reads and writes one tenant's rows of one resource; the SQL stands with each resource."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import asyncpg

from asset_svc.kinds import ResourceT
from asset_svc.stores.violations import violations_of_delete, violations_of_write
from meshkit.db import Connection, tenant_transaction

_R = TypeVar("_R")

# Others may still refer to the row meanwhile (their foreign keys lock its key), but not change it.
_LOCKED = " FOR NO KEY UPDATE"


@dataclass(frozen=True, slots=True)
class Table(Generic[ResourceT]):
    """How one resource lies in its table: statements, and conversions of its columns.

    In all statements $1 is the tenant: row-level security shows no other's rows,
    and the keys start with it. Then come:

        insert, update  $2 id, $3… `values`; both answer version, create_time, update_time
        find            $2 ids
        page            $2 the id before the page, $3 most rows, $4… `filters`
        delete          $2 id
    """

    resource: str
    insert: str
    update: str
    find: str
    page: str
    delete: str
    values: Callable[[ResourceT], tuple[object, ...]]
    filters: Callable[[Any], tuple[object, ...]]
    from_row: Callable[[asyncpg.Record], ResourceT]


class TableRows(Generic[ResourceT]):
    """One tenant's rows of one table, inside of a transaction.

    Args:
        connection: in a transaction of the tenant.
        tenant: whose rows.
        table: which.
    """

    def __init__(self, connection: Connection, tenant: str, table: Table[ResourceT]) -> None:
        self._connection = connection
        self._tenant = tenant
        self._table: Table[ResourceT] = table

    async def insert(self, resource: ResourceT) -> ResourceT:
        """Add a row; returns the resource with etag and times.

        Raises:
            AlreadyExists: the id is taken.
            FailedPrecondition: REFERENCE_NOT_FOUND.
        """
        return await self._write(self._table.insert, resource)

    async def update(self, resource: ResourceT) -> ResourceT:
        """Write a locked row; returns the resource with its new etag and time.

        Raises:
            FailedPrecondition: REFERENCE_NOT_FOUND.
        """
        return await self._write(self._table.update, resource)

    async def find(self, ids: Sequence[str]) -> list[ResourceT]:
        """Read those that exist, in no order."""
        rows = await self._connection.fetch(self._table.find, self._tenant, ids)
        return [self._read(row) for row in rows]

    async def lock(self, resource_id: str) -> ResourceT | None:
        """Read one and keep others from changing it until the transaction ends."""
        row = await self._connection.fetchrow(self._table.find + _LOCKED, self._tenant, [resource_id])
        return self._read(row) if row is not None else None

    async def page(self, request: Any, *, after: str, limit: int) -> list[ResourceT]:
        """Read those that match a list request's filters, by id, the first after an id."""
        return await self._page(after, limit, self._table.filters(request))

    async def delete(self, resource_id: str) -> None:
        """Remove a locked row.

        Raises:
            FailedPrecondition: IN_USE.
        """
        with violations_of_delete(self._table.resource, resource_id):
            await self._connection.execute(self._table.delete, self._tenant, resource_id)

    async def _page(self, after: str, limit: int, filters: Iterable[object]) -> list[ResourceT]:
        rows = await self._connection.fetch(self._table.page, self._tenant, after, limit, *filters)
        return [self._read(row) for row in rows]

    async def _write(self, statement: str, resource: ResourceT) -> ResourceT:
        values = self._table.values(resource)
        with violations_of_write(self._table.resource, resource):
            (row,) = await self._connection.fetch(statement, self._tenant, resource.id, *values)
        return _stamped(resource, row)

    def _read(self, row: asyncpg.Record) -> ResourceT:
        return _stamped(self._table.from_row(row), row)


def _stamped(resource: ResourceT, row: asyncpg.Record) -> ResourceT:
    resource.etag = f'"{row["version"]}"'
    resource.create_time.FromDatetime(row["create_time"])
    resource.update_time.FromDatetime(row["update_time"])
    return resource


class TenantStore(Generic[_R]):
    """Opens transactions that see one tenant's rows.

    Args:
        pool: with the service's role, which row-level security holds.
        rows: makes the rows of a transaction.
        isolation: as asyncpg names it; the server's default when None.
    """

    def __init__(
        self,
        *,
        pool: asyncpg.Pool,
        rows: Callable[[Connection, str], _R],
        isolation: Literal["repeatable_read"] | None = None,
    ) -> None:
        self._pool = pool
        self._rows = rows
        self._isolation = isolation

    @asynccontextmanager
    async def transaction(self, tenant: str) -> AsyncIterator[_R]:
        """Open a transaction; it commits at the end, or an error undoes all of it."""
        async with tenant_transaction(self._pool, tenant, isolation=self._isolation) as connection:
            yield self._rows(connection, tenant)
