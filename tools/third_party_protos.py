"""Fills git-ignored third_party/proto from the installed packages, without network.

google/api and google/rpc lie as source in googleapis-common-protos. protovalidate
ships no source of buf/validate/validate.proto, only its descriptor, which is
printed here and compiled back: a printed file that is not equal is refused.

    python -m tools.third_party_protos [DIRECTORY]
"""

import importlib.metadata
import importlib.resources
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    field_mask_pb2,
    message_factory,
    text_format,
    timestamp_pb2,
)
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc_tools import protoc
from protovalidate import ViolationPb

DESTINATION = Path(__file__).parents[1] / "third_party" / "proto"
GOOGLE_PROTOS = (
    "google/api/annotations.proto",
    "google/api/field_behavior.proto",
    "google/api/http.proto",
    "google/api/httpbody.proto",
    "google/rpc/code.proto",
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
)
LAST_FIELD_NUMBER = 2**29


class ProtoPrinter:
    """Prints a proto2 file's descriptor as source.

    Knows what validate.proto uses and no more: top-level messages and enums,
    extensions, oneofs, reserved and extension ranges, options.
    """

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self._file = file
        self._pool = descriptor_pool.DescriptorPool()
        for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
            self._pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        self._pool.AddSerializedFile(file.SerializeToString())

    def print(self) -> str:
        """Returns the source text."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        file = self._file
        yield 'syntax = "proto2";'
        yield f"package {file.package};"
        yield from (f'import "{name}";' for name in file.dependency)
        yield from (f"option {option};" for option in self._options(file.options))
        for extension in file.extension:
            yield f"extend {extension.extendee} {{ {self._field(extension)} }}"
        for enum in file.enum_type:
            yield f"enum {enum.name} {{"
            yield from (f"  {value.name} = {value.number};" for value in enum.value)
            # An enum's reserved range includes its end, a message's does not.
            yield from (f"  reserved {range_.start} to {range_.end};" for range_ in enum.reserved_range)
            yield from (f'  reserved "{name}";' for name in enum.reserved_name)
            yield "}"
        for message in file.message_type:
            yield from self._message(message)

    def _message(self, message: descriptor_pb2.DescriptorProto) -> Iterator[str]:
        yield f"message {message.name} {{"
        open_oneof: int | None = None
        for field in message.field:
            oneof = field.oneof_index if field.HasField("oneof_index") else None
            if oneof != open_oneof:
                if open_oneof is not None:
                    yield "  }"
                if oneof is not None:
                    yield f"  oneof {message.oneof_decl[oneof].name} {{"
                open_oneof = oneof
            yield f"  {self._field(field)}"
        if open_oneof is not None:
            yield "  }"
        for extensions in message.extension_range:
            end = "max" if extensions.end == LAST_FIELD_NUMBER else extensions.end - 1
            yield f"  extensions {extensions.start} to {end};"
        yield from (f"  reserved {range_.start} to {range_.end - 1};" for range_ in message.reserved_range)
        yield from (f'  reserved "{name}";' for name in message.reserved_name)
        yield "}"

    def _field(self, field: descriptor_pb2.FieldDescriptorProto) -> str:
        label = "" if field.HasField("oneof_index") else f"{_keyword(field.Label.Name(field.label))} "
        kind = field.type_name or _keyword(field.Type.Name(field.type))
        options = ", ".join(self._options(field.options))
        suffix = f" [{options}]" if options else ""
        return f"{label}{kind} {field.name} = {field.number}{suffix};"

    def _options(self, options: Message) -> Iterator[str]:
        """Yields `name = value` of every option that is set, extensions of this file among them."""
        descriptor = self._pool.FindMessageTypeByName(options.DESCRIPTOR.full_name)
        known = message_factory.GetMessageClass(descriptor).FromString(options.SerializeToString())
        for option, value in known.ListFields():
            name = f"({option.full_name})" if option.is_extension else option.name
            yield f"{name} = {self._value(option, value)}"

    def _value(self, option: FieldDescriptor, value: object) -> str:
        if isinstance(value, Message):
            return (
                "{ " + text_format.MessageToString(value, as_one_line=True, descriptor_pool=self._pool) + " }"
            )
        if option.type == FieldDescriptor.TYPE_STRING:
            return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
        if option.type == FieldDescriptor.TYPE_BOOL:
            return "true" if value else "false"
        raise NotImplementedError(f"option {option.full_name} is of a kind that this printer does not know")


def compile_proto(source: str, name: str) -> descriptor_pb2.FileDescriptorProto:
    """Compiles one file that imports only google/protobuf.

    Args:
        source: the file's text.
        name: its import path, such as buf/validate/validate.proto.

    Raises:
        ValueError: protoc does not take it (protoc's own words are on stderr).
    """
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, name)
        path.parent.mkdir(parents=True)
        path.write_text(source)
        image = Path(directory, "image.binpb")
        arguments = ["protoc", f"-I{directory}", f"-I{well_known}", f"--descriptor_set_out={image}", name]
        if protoc.main(arguments):
            raise ValueError(f"{name}: protoc does not take the printed file")
        return descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes()).file[0]


def validate_descriptor() -> descriptor_pb2.FileDescriptorProto:
    """Returns the descriptor of buf/validate/validate.proto that protovalidate works with."""
    return descriptor_pb2.FileDescriptorProto.FromString(ViolationPb.desc().file.proto.to_binary())


def validate_source() -> str:
    """Returns source whose descriptor equals protovalidate's.

    Raises:
        ValueError: the printed source means something else, as when a new
            protovalidate uses a feature of the language unknown here.
    """
    descriptor = validate_descriptor()
    source = ProtoPrinter(descriptor).print()
    if compile_proto(source, descriptor.name) != descriptor:
        raise ValueError(f"{descriptor.name}: printed and compiled again it differs; extend ProtoPrinter")
    return source


def google_source(name: str) -> str:
    """Returns the text of one of googleapis-common-protos' files."""
    source = importlib.metadata.distribution("googleapis-common-protos").locate_file(name)
    return Path(str(source)).read_text()


def main(arguments: Sequence[str]) -> None:
    """Writes all files; unchanged ones keep their time stamps."""
    destination = Path(arguments[0]) if arguments else DESTINATION
    sources = {name: google_source(name) for name in GOOGLE_PROTOS}
    sources[validate_descriptor().name] = validate_source()
    for name, source in sources.items():
        path = destination / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != source:
            path.write_text(source)


def _keyword(constant: str) -> str:
    """TYPE_UINT32 -> uint32, LABEL_REPEATED -> repeated."""
    return constant.partition("_")[2].lower()


if __name__ == "__main__":
    main(sys.argv[1:])
