"""Which resources a call is about, as the contract names them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from operator import attrgetter
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from meshkit.audit import MOST_TARGETS, storable_targets

# It names a request, so that a repetition is recognised.
_NO_RESOURCE = "request_id"
# What resources are called by.
_NAMES = ("id", "username")


class TargetReader:
    """Reads the ids of the resources that calls of one rpc are about, as its contract names them.

    Those are the fields `id`, `username`, `ids`, `…_id` and `…_ids` of the request, and the identifiers of
    the resources in it.

    Args:
        method: full rpc path, "/package.Service/Method".
    """

    def __init__(self, method: str) -> None:
        self._read: list[Callable[[Any], Iterable[str]]] = []
        self._of_answer = False
        try:
            rpc = descriptor_pool.Default().FindMethodByName(method.lstrip("/").replace("/", "."))
        except KeyError:
            return
        self._read = list(_readers(rpc.input_type))
        answered = rpc.output_type.fields_by_name.get("id")
        self._of_answer = answered is not None and _is_text(answered) and not answered.is_repeated

    def asked(self, request: Message) -> Sequence[str]:
        """Return the ids that a request names, as they are kept: whatever its caller made up."""
        if not self._read:
            return ()
        found = chain.from_iterable(read(request) for read in self._read)
        return storable_targets(filter(None, islice(found, MOST_TARGETS)))

    def answered(self, response: object) -> Sequence[str]:
        """Return the id of the resource that a call without one made."""
        if self._of_answer and isinstance(response, Message):
            made: str = response.id  # type: ignore[attr-defined]
            return (made,)
        return ()


def _readers(request: Descriptor) -> Iterator[Callable[[Any], Iterable[str]]]:
    for field in request.fields:
        if field.message_type is not None:
            for name in _identifier_of(field.message_type):
                yield _every(field.name, name) if field.is_repeated else _one(f"{field.name}.{name}")
        elif _is_text(field) and field.name != _NO_RESOURCE:
            if field.is_repeated and (field.name == "ids" or field.name.endswith("_ids")):
                yield attrgetter(field.name)
            elif not field.is_repeated and (field.name in _NAMES or field.name.endswith("_id")):
                yield _one(field.name)


def _is_text(field: FieldDescriptor) -> bool:
    return field.type == FieldDescriptor.TYPE_STRING


def _identifier_of(resource: Descriptor) -> Iterator[str]:
    """Yield the name of the field that identifies a resource, if the message is one."""
    for name in _NAMES:
        field = resource.fields_by_name.get(name)
        if field is not None and (
            field_behavior_pb2.IDENTIFIER in field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
        ):
            yield name


def _one(path: str) -> Callable[[Any], Iterable[str]]:
    get = attrgetter(path)
    return lambda request: (get(request),)


def _every(field: str, name: str) -> Callable[[Any], Iterable[str]]:
    get = attrgetter(name)
    return lambda request: (get(resource) for resource in getattr(request, field))
