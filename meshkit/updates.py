"""Update masks: which fields of a resource an update takes over (AIP-134, AIP-161).

What cannot be changed is read from the contract: the IDENTIFIER, IMMUTABLE and
OUTPUT_ONLY fields.
"""

from collections.abc import Sequence
from typing import TypeVar, cast

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from meshkit.errors import FieldViolation, InvalidArgument, invalid_field
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_M = TypeVar("_M", bound=Message)
_EVERYTHING = "*"
_FIXED = {field_behavior_pb2.IMMUTABLE, field_behavior_pb2.OUTPUT_ONLY}
# They say which resource, in which version, is meant.
_ADDRESS = ("id", "etag")


def updated(current: _M, sent: _M, paths: Sequence[str]) -> _M:
    """Return the present resource with the named fields of the one sent.

    A path names a field, a field of a nested message (`location.latitude`) or a
    map's entry (`network_metadata.firmware`), in snake_case or camelCase; a field
    that is named and not sent is cleared. Fields that cannot be changed may be named
    as long as they are sent as they are, so that a resource can be sent back whole.

    Args:
        current: the resource as stored; stays as it is.
        sent: the new values.
        paths: of the update mask; none: every field that is set in `sent`;
            "*": every field that can be changed.

    Raises:
        InvalidArgument: a path leads nowhere, or a field cannot be changed.
    """
    target = type(current)()
    target.CopyFrom(current)
    descriptor = _descriptor(target)
    for path in _expanded(sent, paths):
        names = _resolved(descriptor, path)
        field = descriptor.fields_by_name[names[0]]
        if field.name in _ADDRESS:
            continue
        if _is_fixed(field):
            if getattr(sent, field.name) != getattr(current, field.name):
                raise _immutable(field.name)
            continue
        _take(sent, target, names)
    return target


def changed_fields(before: Message, after: Message) -> list[str]:
    """Return the names of the fields in which two states of a resource differ.

    A field that says nothing differs from one that says its default: a policy from none.
    """

    def said(state: Message, field: FieldDescriptor) -> tuple[bool, object]:
        return not field.has_presence or state.HasField(field.name), getattr(state, field.name)

    return [field.name for field in _descriptor(before).fields if said(before, field) != said(after, field)]


def fields_set(*resources: Message) -> list[str]:
    """Return the names of the fields that are set in some of these resources."""
    return sorted({field.name for resource in resources for field, _ in resource.ListFields()})


def _expanded(sent: Message, paths: Sequence[str]) -> list[str]:
    present = [field.name for field, _ in sent.ListFields()]
    if not paths:
        return present
    if _EVERYTHING not in paths:
        return list(paths)
    if len(paths) > 1:
        raise invalid_field("update_mask", "* stands for every field and must stand alone")
    changeable = [field.name for field in _descriptor(sent).fields if not _is_fixed(field)]
    return [*changeable, *(name for name in present if name not in changeable)]


def _descriptor(message: Message) -> Descriptor:
    # What the fast implementation offers has the same attributes by another type.
    return cast(Descriptor, message.DESCRIPTOR)


def _is_fixed(field: FieldDescriptor) -> bool:
    return not _FIXED.isdisjoint(field.GetOptions().Extensions[field_behavior_pb2.field_behavior])


def _resolved(descriptor: Descriptor, path: str) -> list[str]:
    """Return the field names that a path leads through, with a map's key in the end."""
    names: list[str] = []
    within: Descriptor | None = descriptor
    rest = path
    while rest and within is not None:
        name, _, rest = rest.partition(".")
        field = within.fields_by_name.get(name) or within.fields_by_camelcase_name.get(name)
        if field is None:
            raise _unknown(path)
        names.append(field.name)
        if _is_map(field) and rest:
            return [*names, rest]
        # Nothing inside of a list can be named, and well-known types are single values.
        within = field.message_type
        if within is not None and (field.is_repeated or within.file.package == "google.protobuf"):
            within = None
    if rest or not names or path.endswith("."):
        raise _unknown(path)
    return names


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _take(source: Message, target: Message, names: Sequence[str]) -> None:
    name, *rest = names
    if not rest:
        mask = FieldMask(paths=[name])
        mask.MergeMessage(source, target, replace_message_field=True, replace_repeated_field=True)
    elif _is_map(_descriptor(target).fields_by_name[name]):
        entries, (key,) = getattr(target, name), rest
        entries.pop(key, None)
        if key in getattr(source, name):
            entries[key] = getattr(source, name)[key]
    elif source.HasField(name) or target.HasField(name):
        _take(getattr(source, name), getattr(target, name), rest)


def _unknown(path: str) -> InvalidArgument:
    return invalid_field("update_mask", f"{path!r} names no field")


def _immutable(name: str) -> InvalidArgument:
    message = f"{name} cannot be changed"
    return InvalidArgument(
        message,
        reason=ErrorReason.ERROR_REASON_FIELD_IMMUTABLE,
        violations=[FieldViolation(name, message)],
    )
