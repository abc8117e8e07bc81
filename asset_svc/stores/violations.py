"""What a broken constraint means to the caller: one table for the whole schema."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import asyncpg

from asset_svc.kinds import Resource
from meshkit.errors import AlreadyExists, FailedPrecondition
from twinmesh.type.v1.error_reason_pb2 import ErrorReason


@dataclass(frozen=True, slots=True)
class Reference:
    """A foreign key: the field that holds it, what it names, and who holds it (plural)."""

    field: str
    resource: str
    holders: str


_REFERENCES = {
    "device_type_child_type_fkey": Reference("child_device_type_id", "device_type", "types of gateways"),
    "asset_asset_type_fkey": Reference("asset_type_id", "asset_type", "assets"),
    "asset_parent_fkey": Reference("parent_id", "asset", "assets"),
    "device_device_type_fkey": Reference("device_type_id", "device_type", "devices"),
    "device_parent_fkey": Reference("parent_id", "device", "child devices"),
    "device_asset_fkey": Reference("asset_id", "asset", "devices"),
}
# Whatever else is unique in the schema is the resource's id.
_ID_HINTS = {"device_id_key": "; device ids are unique in the whole installation"}


@contextmanager
def violations_of_write(resource: str, written: Resource) -> Iterator[None]:
    """Raise what an INSERT or UPDATE of a resource broke as a domain error.

    Raises:
        AlreadyExists: its id is taken.
        FailedPrecondition: REFERENCE_NOT_FOUND.
    """
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        raise AlreadyExists(
            f"{resource} {written.id!r} exists already{_ID_HINTS.get(error.constraint_name or '', '')}",
            reason=ErrorReason.ERROR_REASON_ALREADY_EXISTS,
            metadata={"resource": resource, "id": written.id},
        ) from error
    except asyncpg.ForeignKeyViolationError as error:
        reference = _REFERENCES[error.constraint_name or ""]
        absent = str(getattr(written, reference.field))
        raise FailedPrecondition(
            f"{reference.field}: {reference.resource} {absent!r} does not exist",
            reason=ErrorReason.ERROR_REASON_REFERENCE_NOT_FOUND,
            metadata={"resource": reference.resource, "id": absent},
        ) from error


@contextmanager
def violations_of_delete(resource: str, resource_id: str) -> Iterator[None]:
    """Raise what a DELETE broke as a domain error.

    Raises:
        FailedPrecondition: IN_USE.
    """
    try:
        yield
    except asyncpg.ForeignKeyViolationError as error:
        holders = _REFERENCES[error.constraint_name or ""].holders
        raise FailedPrecondition(
            f"{resource} {resource_id!r} still has {holders}",
            reason=ErrorReason.ERROR_REASON_IN_USE,
            metadata={"resource": resource, "id": resource_id},
        ) from error
