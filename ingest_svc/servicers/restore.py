"""RestoreService: what is wanted back from the archive."""

from datetime import date, timedelta
from typing import Any, Protocol

from ingest_svc.conversion import to_micros
from ingest_svc.restores import KEPT, days_of, start_of
from meshkit import audit, paging
from meshkit.errors import not_found
from meshkit.identity import current_principal
from meshkit.updates import fields_set
from telemetry_store.restores import RestoreRow
from twinmesh.ingest.v1 import restore_service_pb2 as contract
from twinmesh.ingest.v1 import restore_service_pb2_grpc as contract_grpc

_PER_PAGE, _MOST_PER_PAGE = 100, 1_000
_DAY = timedelta(days=1)


class Restores(Protocol):
    """Where restores are kept."""

    async def ask(
        self, *, tenant: str, principal: str, first_day: date, last_day: date, kept: timedelta
    ) -> RestoreRow:
        """Ask for days; the same ones are the same restore."""
        ...

    async def find(self, tenant: str, restore_id: str) -> RestoreRow | None:
        """Return a tenant's restore, None when it has none of this id."""
        ...

    async def page(self, tenant: str, *, after: str, limit: int) -> list[RestoreRow]:
        """Return a tenant's restores by id, those behind an id."""
        ...


class RestoreServicer(contract_grpc.RestoreServiceServicer):
    """Serves twinmesh.ingest.v1.RestoreService.

    Args:
        restores: where they are kept.
    """

    def __init__(self, *, restores: Restores) -> None:
        self._restores = restores

    async def CreateRestore(self, request: contract.CreateRestoreRequest, context: Any) -> contract.Restore:
        principal = current_principal()
        audit.changed(fields_set(request))
        first_day, last_day = days_of(to_micros(request.start_time), to_micros(request.end_time))
        row = await self._restores.ask(
            tenant=principal.tenant,
            principal=principal.name,
            first_day=first_day,
            last_day=last_day,
            kept=timedelta(days=request.keep_days) or KEPT,
        )
        return _to_restore(row)

    async def GetRestore(self, request: contract.GetRestoreRequest, context: Any) -> contract.Restore:
        row = await self._restores.find(current_principal().tenant, request.id)
        if row is None:
            raise not_found("restore", request.id)
        return _to_restore(row)

    async def ListRestores(
        self, request: contract.ListRestoresRequest, context: Any
    ) -> contract.ListRestoresResponse:
        tenant = current_principal().tenant
        question = ["restores", tenant]
        after = paging.decode(question, request.page_token)
        if not isinstance(after, str | None):
            raise paging.invalid_token()
        size = paging.page_size(request.page_size, default=_PER_PAGE, maximum=_MOST_PER_PAGE)
        rows = await self._restores.page(tenant, after=after or "", limit=size + 1)
        is_last = len(rows) <= size
        return contract.ListRestoresResponse(
            restores=map(_to_restore, rows[:size]),
            next_page_token="" if is_last else paging.encode(question, rows[size - 1].restore_id),
        )


def _to_restore(row: RestoreRow) -> contract.Restore:
    restore = contract.Restore(
        id=row.restore_id,
        state=contract.RestoreState.ValueType(row.state),
        days=row.days,
        days_done=row.days_done,
        samples=row.samples,
        error=row.error or "",
        principal=row.principal,
    )
    restore.start_time.FromDatetime(start_of(row.first_day))
    restore.end_time.FromDatetime(start_of(row.last_day + _DAY))
    restore.keep_until_time.FromMicroseconds(row.kept_until_us)
    restore.create_time.FromMicroseconds(row.created_us)
    if row.finished_us is not None:
        restore.finish_time.FromMicroseconds(row.finished_us)
    return restore
