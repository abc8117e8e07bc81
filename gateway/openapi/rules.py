"""What protovalidate asks of a field, in the words of JSON Schema, as far as it has them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import protovalidate
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from buf.validate import validate_pb2

# A JSON Schema, or some keywords of one.
Schema = dict[str, Any]
_BOUNDS = {
    "gt": "exclusiveMinimum",
    "gte": "minimum",
    "lt": "exclusiveMaximum",
    "lte": "maximum",
    "min_items": "minItems",
    "max_items": "maxItems",
    "min_pairs": "minProperties",
    "max_pairs": "maxProperties",
    "pattern": "pattern",
    "const": "const",
}
_FORMATS = {"uuid": "uuid", "email": "email", "hostname": "hostname", "uri": "uri"}
_ZEROS: Mapping[int, Any] = {
    FieldDescriptor.CPPTYPE_STRING: "",
    FieldDescriptor.CPPTYPE_DOUBLE: 0,
    FieldDescriptor.CPPTYPE_FLOAT: 0,
    FieldDescriptor.CPPTYPE_INT32: 0,
    FieldDescriptor.CPPTYPE_UINT32: 0,
    FieldDescriptor.CPPTYPE_INT64: "0",
    FieldDescriptor.CPPTYPE_UINT64: "0",
}
_NUMBERS = (
    *("float", "double", "int32", "sint32", "sfixed32", "uint32", "fixed32"),
    *("int64", "sint64", "sfixed64", "uint64", "fixed64"),
)
_64_BITS = {FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64}
_validator = protovalidate.Validator()


def rules_of(field: FieldDescriptor) -> validate_pb2.FieldRules:
    """Return the rules that a field carries."""
    rules: validate_pb2.FieldRules = field.GetOptions().Extensions[validate_pb2.field]
    return rules


def is_ignored(rules: validate_pb2.FieldRules) -> bool:
    """Tell whether nothing is asked of a field, nor of what its messages hold."""
    return rules.ignore == validate_pb2.IGNORE_ALWAYS


def required_fields(message: Descriptor) -> frozenset[str]:
    """Return the names of the fields without which a message is refused.

    A field that knows no absence is refused when it is left out, if its zero is.
    """
    empty = message_factory.GetMessageClass(message)()
    paths = [
        violation.proto.field.elements
        for violation in _validator.collect_violations(empty)
        if violation.proto.field is not None
    ]
    return frozenset(path[0].field_name for path in paths if len(path) == 1)


def limited(schema: Schema, field: FieldDescriptor, rules: validate_pb2.FieldRules) -> Schema:
    """Return the schema of one value, narrowed by the rules of its field, item, key or map value."""
    kind = rules.WhichOneof("type")
    if kind is None or kind not in _KEYWORDS:
        return schema
    narrowed = schema | _KEYWORDS[kind](getattr(rules, kind), field)
    if rules.ignore == validate_pb2.IGNORE_IF_ZERO_VALUE and not field.has_presence:
        return {"anyOf": [{"const": _ZEROS[field.cpp_type]}, narrowed]}
    return narrowed


def limited_list(rules: validate_pb2.FieldRules) -> Schema:
    """Return the keywords of a list's rules, but for those of its items."""
    unique = {"uniqueItems": True} if rules.repeated.unique else {}
    return _bounds(rules.repeated, ("min_items", "max_items")) | unique


def limited_map(rules: validate_pb2.FieldRules) -> Schema:
    """Return the keywords of a map's rules, but for those of its keys and values."""
    return _bounds(rules.map, ("min_pairs", "max_pairs"))


def messages_of(rules: validate_pb2.FieldRules | validate_pb2.MessageRules) -> list[str]:
    """Return what the rules that are expressions tell, which no keyword says."""
    return [rule.message for rule in rules.cel if rule.message]


def _bounds(rules: Any, names: Iterable[str]) -> Schema:
    return {_BOUNDS[name]: getattr(rules, name) for name in names if rules.HasField(name)}


def _lists(rules: Any) -> Schema:
    keywords: Schema = {}
    if allowed := list(getattr(rules, "in")):
        keywords["enum"] = allowed
    if rules.not_in:
        keywords["not"] = {"enum": list(rules.not_in)}
    return keywords


def _of_number(rules: Any, field: FieldDescriptor) -> Schema:
    if field.cpp_type in _64_BITS:
        # Text in JSON: of its bounds only the sign can be said.
        positive = (rules.HasField("gte") and rules.gte >= 0) or (rules.HasField("gt") and rules.gt >= 0)
        return {"pattern": r"^[0-9]{1,20}$"} if positive else {}
    return _bounds(rules, ("gt", "gte", "lt", "lte", "const")) | _lists(rules)


def _of_string(rules: validate_pb2.StringRules, _: FieldDescriptor) -> Schema:
    keywords = _bounds(rules, ("pattern", "const")) | _lists(rules)
    least = rules.len if rules.HasField("len") else rules.min_len
    if least:
        keywords["minLength"] = least
    if rules.HasField("len") or rules.HasField("max_len"):
        keywords["maxLength"] = rules.len if rules.HasField("len") else rules.max_len
    if (known := rules.WhichOneof("well_known")) in _FORMATS:
        keywords["format"] = _FORMATS[known]
    return keywords


def _of_bytes(rules: validate_pb2.BytesRules, _: FieldDescriptor) -> Schema:
    # Of base64, which has four letters for three bytes.
    keywords: Schema = {}
    if rules.min_len:
        keywords["minLength"] = -(-rules.min_len // 3) * 4
    if rules.HasField("max_len"):
        keywords["maxLength"] = -(-rules.max_len // 3) * 4
    return keywords


def _of_enum(rules: validate_pb2.EnumRules, field: FieldDescriptor) -> Schema:
    values = cast("EnumDescriptor", field.enum_type).values
    allowed = set(getattr(rules, "in")) or {value.number for value in values}
    if rules.HasField("const"):
        allowed = {rules.const}
    names = [value.name for value in values if value.number in allowed - set(rules.not_in)]
    return {} if len(names) == len(values) else {"enum": names}


def _of_duration(rules: validate_pb2.DurationRules, _: FieldDescriptor) -> Schema:
    positive = (rules.HasField("gte") and rules.gte.seconds >= 0) or (
        rules.HasField("gt") and rules.gt.seconds >= 0
    )
    return {"pattern": r"^[0-9]{1,12}(\.[0-9]{1,9})?s$"} if positive else {}


# Others have no keywords: instants are text, and `now` is no constant.
_KEYWORDS: Mapping[str, Callable[[Any, FieldDescriptor], Schema]] = {
    "string": _of_string,
    "bytes": _of_bytes,
    "enum": _of_enum,
    "duration": _of_duration,
    **dict.fromkeys(_NUMBERS, _of_number),
}
