"""Messages as JSON Schema, by the proto3 JSON mapping as the gateway prints it."""

from collections.abc import Collection, Mapping
from typing import Any, cast

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from buf.validate import validate_pb2
from gateway.openapi import rules
from gateway.openapi.rules import Schema

COMPONENTS = "#/components/schemas/"
_INT64 = {"type": "string", "format": "int64", "pattern": r"^-?[0-9]{1,19}$"}
_UINT64 = {"type": "string", "format": "uint64", "pattern": r"^[0-9]{1,20}$"}
_INT32 = {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1}
_UINT32 = {"type": "integer", "format": "uint32", "minimum": 0, "maximum": 2**32 - 1}
_DOUBLE = {"type": "number", "format": "double"}
_FLOAT = {"type": "number", "format": "float"}
_BOOL = {"type": "boolean"}
_STRING = {"type": "string"}
_BYTES = {"type": "string", "contentEncoding": "base64"}
_SCALARS: Mapping[int, Schema] = {
    FieldDescriptor.CPPTYPE_INT64: _INT64,
    FieldDescriptor.CPPTYPE_UINT64: _UINT64,
    FieldDescriptor.CPPTYPE_INT32: _INT32,
    FieldDescriptor.CPPTYPE_UINT32: _UINT32,
    FieldDescriptor.CPPTYPE_DOUBLE: _DOUBLE,
    FieldDescriptor.CPPTYPE_FLOAT: _FLOAT,
    FieldDescriptor.CPPTYPE_BOOL: _BOOL,
    FieldDescriptor.CPPTYPE_STRING: _STRING,
}
# Well-known types have JSON of their own; those of the first table are one text or scalar, also in a query.
PLAIN: Mapping[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]{1,12}(\.[0-9]{1,9})?s$"},
    "google.protobuf.FieldMask": {"type": "string", "pattern": r"^[A-Za-z0-9_.,]*$"},
    "google.protobuf.DoubleValue": _DOUBLE,
    "google.protobuf.FloatValue": _FLOAT,
    "google.protobuf.Int64Value": _INT64,
    "google.protobuf.UInt64Value": _UINT64,
    "google.protobuf.Int32Value": _INT32,
    "google.protobuf.UInt32Value": _UINT32,
    "google.protobuf.BoolValue": _BOOL,
    "google.protobuf.StringValue": _STRING,
    "google.protobuf.BytesValue": _BYTES,
}
WELL_KNOWN: Mapping[str, Schema] = {
    **PLAIN,
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.ListValue": {"type": "array"},
    "google.protobuf.Value": {},
}


class Schemas:
    """Schemas of messages and enums, and of all that they refer to, as components of a document.

    Attributes:
        comments: of the contract, by full name.
        components: what was referred to so far, by full name.
    """

    def __init__(self, comments: Mapping[str, str]) -> None:
        self.comments = comments
        self.components: dict[str, Schema] = {}

    def message(self, message: Descriptor, *, checked: bool = True) -> Schema:
        """Return a schema that refers to a message's.

        Args:
            message: its type.
            checked: its rules hold; else it is as somebody sent it.

        Raises:
            KeyError: it is a well-known type whose JSON is not known here.
        """
        name = message.full_name
        if name.startswith("google.protobuf."):
            return WELL_KNOWN[name]
        name = name if checked else f"{name}-unchecked"
        if name not in self.components:
            # There before its fields, of which one may be of the same type.
            self.components[name] = {}
            self.components[name].update(self.object(message, checked=checked))
        return {"$ref": f"{COMPONENTS}{name}"}

    def object(self, message: Descriptor, *, without: Collection[str] = (), checked: bool = True) -> Schema:
        """Return a message's own schema.

        Args:
            message: its type.
            without: names of fields that are not part of it here.
            checked: as of `message`.
        """
        fields = [field for field in message.fields if field.name not in without]
        asked = message.GetOptions().Extensions[validate_pb2.message]
        required = rules.required_fields(message) if checked else frozenset()
        schema: Schema = {"type": "object"}
        if text := self._words(message.full_name, rules.messages_of(asked) if checked else ()):
            schema["description"] = text
        if fields:
            schema["properties"] = {field.json_name: self.field(field, checked=checked) for field in fields}
        if names := [field.json_name for field in fields if field.name in required]:
            schema["required"] = names
        if choices := _choices(message, without, checked=checked):
            schema["allOf"] = choices
        return schema

    def field(self, field: FieldDescriptor, *, checked: bool = True) -> Schema:
        """Return the schema of a field, with its words."""
        asked = rules.rules_of(field)
        if not checked or rules.is_ignored(asked):
            asked, checked = validate_pb2.FieldRules(), False
        schema = dict(self._shape(field, asked, checked=checked))
        if text := self._words(field.full_name, rules.messages_of(asked)):
            schema["description"] = text
        if _is_output_only(field):
            schema["readOnly"] = True
        return schema

    def enum(self, enum: EnumDescriptor) -> Schema:
        """Return a schema that refers to an enum's: names, each with its words."""
        name = enum.full_name
        if name not in self.components:
            values = [
                f"- `{value.name}`: {' '.join(text.split())}"
                for value in enum.values
                if (text := self.comments.get(f"{name}.{value.name}"))
            ]
            words = "\n\n".join(filter(None, [self.comments.get(name), "\n".join(values)]))
            self.components[name] = {
                "type": "string",
                "enum": [value.name for value in enum.values],
                **({"description": words} if words else {}),
            }
        return {"$ref": f"{COMPONENTS}{name}"}

    def _words(self, name: str, told: Collection[str]) -> str:
        """Return what the contract says, and what its expressions ask, in one text."""
        return "\n\n".join(filter(None, [self.comments.get(name), "\n".join(f"- {rule}" for rule in told)]))

    def _shape(self, field: FieldDescriptor, asked: validate_pb2.FieldRules, *, checked: bool) -> Schema:
        if _is_map(field):
            entry = cast("Descriptor", field.message_type)
            key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
            keys = rules.limited({}, key, asked.map.keys)
            return {
                "type": "object",
                "additionalProperties": self._value(value, asked.map.values, checked=checked),
                **({"propertyNames": keys} if keys else {}),
                **rules.limited_map(asked),
            }
        if field.is_repeated:
            items = self._value(field, asked.repeated.items, checked=checked)
            return {"type": "array", "items": items, **rules.limited_list(asked)}
        return self._value(field, asked, checked=checked)

    def _value(self, field: FieldDescriptor, asked: validate_pb2.FieldRules, *, checked: bool) -> Schema:
        if field.enum_type is not None:
            narrowed = rules.limited({}, field, asked)
            referred = self.enum(field.enum_type)
            return {"type": "string", **narrowed} if narrowed else referred
        if field.message_type is not None:
            return rules.limited(self.message(field.message_type, checked=checked), field, asked)
        plain = _BYTES if field.type == FieldDescriptor.TYPE_BYTES else _SCALARS[field.cpp_type]
        return rules.limited(plain, field, asked)


def _is_map(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and bool(kind.GetOptions().map_entry)


def _is_output_only(field: FieldDescriptor) -> bool:
    behaviors: Any = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    return field_behavior_pb2.OUTPUT_ONLY in behaviors


def _choices(message: Descriptor, without: Collection[str], *, checked: bool) -> list[Schema]:
    """Return, for each group of fields that exclude each other, that at most or exactly one is there."""
    choices: list[Schema] = []
    for group in message.oneofs:
        names = [field.json_name for field in group.fields if field.name not in without]
        # A group of one is what `optional` makes.
        if len(names) < 2:
            continue
        each: list[Schema] = [{"required": [name]} for name in names]
        is_required = checked and group.GetOptions().Extensions[validate_pb2.oneof].required
        choices.append({"oneOf": each if is_required else [*each, {"not": {"anyOf": each}}]})
    return choices
