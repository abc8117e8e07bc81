"""The comments of a contract, by the full name of what they stand at."""

from collections.abc import Iterator, Mapping

from google.protobuf import descriptor_pb2

_FILE_MESSAGES, _FILE_ENUMS, _FILE_SERVICES = 4, 5, 6
_MESSAGE_FIELDS, _MESSAGE_MESSAGES, _MESSAGE_ENUMS = 2, 3, 4
_ENUM_VALUES, _SERVICE_RPCS = 2, 2

_Path = tuple[int, ...]


def comments_of(files: descriptor_pb2.FileDescriptorSet) -> Mapping[str, str]:
    """Return the leading comments of messages, fields, enums, values, services and rpcs.

    A value of an enum is named below its enum. Without source info there are none.
    """
    found: dict[str, str] = {}
    for file in files.file:
        told = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        for path, name in _names(file):
            if text := told.get(path):
                found[name] = _text(text)
    return found


def _text(comment: str) -> str:
    return "\n".join(line.removeprefix(" ").rstrip() for line in comment.splitlines()).strip()


def _names(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[_Path, str]]:
    for index, message in enumerate(file.message_type):
        yield from _of_message(message, (_FILE_MESSAGES, index), file.package)
    for index, enum in enumerate(file.enum_type):
        yield from _of_enum(enum, (_FILE_ENUMS, index), file.package)
    for index, service in enumerate(file.service):
        path, name = (_FILE_SERVICES, index), f"{file.package}.{service.name}"
        yield path, name
        for number, method in enumerate(service.method):
            yield (*path, _SERVICE_RPCS, number), f"{name}.{method.name}"


def _of_message(
    message: descriptor_pb2.DescriptorProto, path: _Path, scope: str
) -> Iterator[tuple[_Path, str]]:
    name = f"{scope}.{message.name}"
    yield path, name
    for index, field in enumerate(message.field):
        yield (*path, _MESSAGE_FIELDS, index), f"{name}.{field.name}"
    for index, nested in enumerate(message.nested_type):
        yield from _of_message(nested, (*path, _MESSAGE_MESSAGES, index), name)
    for index, enum in enumerate(message.enum_type):
        yield from _of_enum(enum, (*path, _MESSAGE_ENUMS, index), name)


def _of_enum(
    enum: descriptor_pb2.EnumDescriptorProto, path: _Path, scope: str
) -> Iterator[tuple[_Path, str]]:
    name = f"{scope}.{enum.name}"
    yield path, name
    for index, value in enumerate(enum.value):
        yield (*path, _ENUM_VALUES, index), f"{name}.{value.name}"
