"""What devices, device types, assets and asset types have in common: ids, etags, masks, pages."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from asset_svc.kinds import ResourceT
from asset_svc.listing import ListRequest, read_page
from meshkit import audit
from meshkit.errors import Aborted, not_found
from meshkit.updates import changed_fields, fields_set, updated
from meshkit.validation import validate
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_DEFAULT_PAGE = 100
_MAXIMUM_PAGE = 1000


class Rows(Protocol[ResourceT]):
    """One tenant's rows of one resource, inside of a transaction."""

    async def insert(self, resource: ResourceT) -> ResourceT:
        """Add a row; returns the resource with etag and times.

        Raises:
            AlreadyExists: the id is taken.
            FailedPrecondition: REFERENCE_NOT_FOUND.
        """
        ...

    async def find(self, ids: Sequence[str]) -> list[ResourceT]:
        """Read those that exist, in no order."""
        ...

    async def lock(self, resource_id: str) -> ResourceT | None:
        """Read one and keep others from changing it until the transaction ends."""
        ...

    async def page(self, request: Any, *, after: str, limit: int) -> list[ResourceT]:
        """Read those that match a list request's filters, by id, the first after an id."""
        ...

    async def update(self, resource: ResourceT) -> ResourceT:
        """Write a locked row; returns the resource with its new etag and time.

        Raises:
            FailedPrecondition: REFERENCE_NOT_FOUND.
        """
        ...

    async def delete(self, resource_id: str) -> None:
        """Remove a locked row.

        Raises:
            FailedPrecondition: IN_USE.
        """
        ...


_R = TypeVar("_R", bound=Rows[Any])
_R_co = TypeVar("_R_co", covariant=True)


class Store(Protocol[_R_co]):
    """Where the rows are."""

    def transaction(self, tenant: str) -> AbstractAsyncContextManager[_R_co]:
        """Open a transaction that sees one tenant's rows; an error undoes all of it."""
        ...


class Resources(Generic[ResourceT, _R]):
    """Creates, reads, lists, changes and deletes one kind of resource.

    A subclass adds the kind's own rules.

    Args:
        store: of this kind.
    """

    resource: ClassVar[str]  # its name in errors and in field paths

    def __init__(self, *, store: Store[_R]) -> None:
        self._store = store

    async def create(self, tenant: str, resource: ResourceT) -> ResourceT:
        """Add a resource; returns it as stored.

        Raises:
            InvalidArgument: INVALID_FIELD.
            AlreadyExists: the id is taken.
            FailedPrecondition: REFERENCE_NOT_FOUND, PARENT_INVALID.
        """
        audit.changed(fields_set(resource))
        async with self._store.transaction(tenant) as rows:
            created = await self._insert(rows, resource, path=self.resource)
        await self._announce(tenant, [created.id])
        return created

    async def create_all(self, tenant: str, resources: Sequence[ResourceT]) -> list[ResourceT]:
        """Add resources in order, all or none; one may refer to another before it.

        Raises:
            DomainError: as `create` for the first that cannot be added.
        """
        audit.changed(fields_set(*resources))
        async with self._store.transaction(tenant) as rows:
            created = [
                await self._insert(rows, each, path=f"{self.resource}s[{index}]")
                for index, each in enumerate(resources)
            ]
        await self._announce(tenant, [each.id for each in created])
        return created

    async def get(self, tenant: str, resource_id: str) -> ResourceT:
        """Read one.

        Raises:
            NotFound: it is absent.
        """
        found = await self.find(tenant, [resource_id])
        if not found:
            raise not_found(self.resource, resource_id)
        return found[0]

    async def find(self, tenant: str, ids: Sequence[str]) -> list[ResourceT]:
        """Read those that exist, in no order."""
        async with self._store.transaction(tenant) as rows:
            found: list[ResourceT] = await rows.find(ids)
            return found

    async def page(self, tenant: str, request: ListRequest) -> tuple[list[ResourceT], str]:
        """Read one page by id, and the token of the next ("" on the last).

        Raises:
            InvalidArgument: PAGE_TOKEN_INVALID.
        """

        async def fetch(after: str, limit: int) -> list[ResourceT]:
            async with self._store.transaction(tenant) as rows:
                found: list[ResourceT] = await rows.page(request, after=after, limit=limit)
                return found

        return await read_page(
            request, tenant=tenant, default_size=_DEFAULT_PAGE, maximum_size=_MAXIMUM_PAGE, fetch=fetch
        )

    async def update(self, tenant: str, sent: ResourceT, paths: Sequence[str]) -> ResourceT:
        """Change the fields that an update mask names; returns the resource as stored.

        Args:
            tenant: whose resource.
            sent: its id and the new values; an etag, when set, must be the present one.
            paths: of the update mask, see `meshkit.updates.updated`.

        Raises:
            InvalidArgument: INVALID_FIELD, FIELD_IMMUTABLE.
            NotFound: it is absent.
            Aborted: ETAG_MISMATCH.
            FailedPrecondition: REFERENCE_NOT_FOUND, PARENT_INVALID.
        """
        async with self._store.transaction(tenant) as rows:
            current = await self._locked(rows, sent.id, etag=sent.etag)
            changed = updated(current, sent, paths)
            audit.changed(changed_fields(current, changed))
            # What a mask puts together was not seen by the interceptor.
            validate(changed)
            self._complete(changed)
            self._check(changed, path=self.resource)
            await self._check_references(rows, changed, previous=current)
            saved: ResourceT = await rows.update(changed)
        await self._announce(tenant, [saved.id])
        return saved

    async def delete(self, tenant: str, resource_id: str, etag: str) -> None:
        """Remove one; an etag, when set, must be the present one.

        Raises:
            NotFound: it is absent.
            Aborted: ETAG_MISMATCH.
            FailedPrecondition: IN_USE.
        """
        async with self._store.transaction(tenant) as rows:
            await self._locked(rows, resource_id, etag=etag)
            await rows.delete(resource_id)
        await self._announce(tenant, [resource_id])

    async def _insert(self, rows: _R, resource: ResourceT, *, path: str) -> ResourceT:
        self._complete(resource)
        self._check(resource, path=path)
        await self._check_references(rows, resource, previous=None)
        created: ResourceT = await rows.insert(resource)
        return created

    async def _locked(self, rows: _R, resource_id: str, *, etag: str) -> ResourceT:
        current: ResourceT | None = await rows.lock(resource_id)
        if current is None:
            raise not_found(self.resource, resource_id)
        if etag and etag != current.etag:
            raise Aborted(
                f"{self.resource} {resource_id!r} was changed by somebody else: its etag is {current.etag}; "
                "read it again",
                reason=ErrorReason.ERROR_REASON_ETAG_MISMATCH,
            )
        return current

    def _complete(self, resource: ResourceT) -> None:
        """Fill in what an unspecified field stands for."""

    def _check(self, resource: ResourceT, *, path: str) -> None:
        """Refuse content that the contract cannot refuse; `path` leads to the resource."""

    async def _check_references(self, rows: _R, resource: ResourceT, *, previous: ResourceT | None) -> None:
        """Refuse what the database's constraints cannot refuse."""

    async def _announce(self, tenant: str, ids: Sequence[str]) -> None:
        """Tell the mesh, after the commit."""
