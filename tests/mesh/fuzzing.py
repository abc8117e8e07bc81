"""What an attacker may send to any rpc: hypothesis strategies that are read from the descriptors."""

from typing import Any
from urllib.parse import quote

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from gateway.contract import CONTRACT, HttpBinding, Rpc, pool_of, read_files

# The name of everything that the attacked tenant has, so that some requests get past "not found".
EXISTING = "fuzzed"
HOSTILE = (
    "",
    "'; DROP TABLE telemetry.sample; --",
    "' OR '1'='1",
    "%",
    "%_%",
    "%s%n%x",
    "*",
    ">",
    "a.*.>",
    "../../etc/passwd",
    "\\",
    "\0",
    "\r\nx-injected: 1",
    "${jndi:ldap://127.0.0.1/a}",
    "\u202e\U0001f600é",
    "x" * 70_000,
    "(" * 200,
    "(a+)+$" * 20,
    "9" * 400,
    "-1",
    "1e400",
    "9999-99-99T99:99:99Z",
)
_TEXTS = st.sampled_from((EXISTING, EXISTING, EXISTING, *HOSTILE)) | st.text(max_size=20)
# Longer ones are no URL that the client would send; test_metadata_that_is_too_long_is_refused sends one.
_URL_TEXTS = _TEXTS.map(lambda text: text[:2_000])
_MAX_TIME_S, _MIN_TIME_S = 253402300799, -62135596800
_NANOS = st.integers(0, 999_999_999)
# What has no JSON with just any value in its fields: values that have.
_WELL_KNOWN: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "google.protobuf.Timestamp": st.fixed_dictionaries(
        {"seconds": st.integers(_MIN_TIME_S, _MAX_TIME_S), "nanos": _NANOS}
    ),
    "google.protobuf.Duration": st.fixed_dictionaries(
        {"seconds": st.integers(0, 315_576_000_000), "nanos": _NANOS}
    )
    | st.fixed_dictionaries({"seconds": st.integers(-315_576_000_000, 0)}),
    "google.protobuf.FieldMask": st.fixed_dictionaries(
        {"paths": st.lists(st.from_regex(r"[a-z]{1,9}(_[a-z]{1,9}){0,2}", fullmatch=True), max_size=3)}
    ),
    "google.protobuf.Value": st.sampled_from(
        ({"null_value": 0}, {"number_value": 1.5}, {"string_value": "x"}, {"bool_value": True})
    ),
}
_INTEGERS = (0, 1, -1, 1_000, 10**9, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1)
_DEEPEST = 4


def message_descriptor(name: str) -> Descriptor:
    """Return the descriptor of the contract's message with this full name."""
    found: Descriptor = _POOL.FindMessageTypeByName(name)
    return found


def request_descriptor(rpc: Rpc) -> Descriptor:
    """Return the descriptor of an rpc's request."""
    found: Descriptor = _POOL.FindMethodByName(f"{rpc.service}.{rpc.name}").input_type
    return found


def response_descriptor(rpc: Rpc) -> Descriptor:
    """Return the descriptor of what an rpc answers, of each message when it streams."""
    found: Descriptor = _POOL.FindMethodByName(f"{rpc.service}.{rpc.name}").output_type
    return found


_POOL = pool_of(read_files(CONTRACT))


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = 0, *, printable: bool = False) -> Message:
    """Messages whose fields have the right type and any value; any that has JSON when they are printable."""
    made: type[Message] = message_factory.GetMessageClass(descriptor)
    if printable and descriptor.full_name in _WELL_KNOWN:
        return made(**draw(_WELL_KNOWN[descriptor.full_name]))
    message = made()
    if descriptor.fields:
        for field in draw(st.lists(st.sampled_from(list(descriptor.fields)), unique=True, max_size=6)):
            if field.message_type is None or depth < _DEEPEST:
                _fill(draw, message, field, depth, printable=printable)
    return message


@st.composite
def payloads(draw: st.DrawFn, descriptor: Descriptor) -> bytes:
    """Bytes of a message: whole, cut off, with a byte changed, or none of a message at all."""
    kind = draw(st.sampled_from(("whole", "whole", "truncated", "changed", "random")))
    if kind == "random":
        return draw(st.binary(max_size=200))
    whole = draw(messages(descriptor)).SerializeToString()
    if kind == "whole" or not whole:
        return whole
    place = draw(st.integers(0, len(whole) - 1))
    if kind == "truncated":
        return whole[:place]
    return whole[:place] + bytes([draw(st.integers(0, 255))]) + whole[place + 1 :]


@st.composite
def json_requests(draw: st.DrawFn, rpc: Rpc, binding: HttpBinding) -> dict[str, Any]:
    """Arguments of an httpx request to one route."""
    descriptor = request_descriptor(rpc)
    pieces = binding.template.split("{")
    path = pieces[0] + "".join(
        quote(draw(_URL_TEXTS), safe="") + piece.partition("}")[2] for piece in pieces[1:]
    )
    request: dict[str, Any] = {"method": binding.method, "url": path}
    if binding.method in {"POST", "PATCH"}:
        request["content"] = draw(_bodies(descriptor))
        request["headers"] = {"content-type": "application/json"}
    elif descriptor.fields:
        names = st.sampled_from([field.json_name for field in descriptor.fields])
        values = _URL_TEXTS | st.sampled_from(_INTEGERS).map(str)
        request["params"] = draw(st.dictionaries(names, values, max_size=4))
    return request


@st.composite
def _bodies(draw: st.DrawFn, descriptor: Descriptor) -> bytes:
    if draw(st.sampled_from((True, False, False, False))):
        return draw(st.sampled_from((b"", b"{", b"[]", b"null", b"7", b"[" * 5_000, b'{"a":' * 5_000)))
    try:
        whole = json_format.MessageToJson(draw(messages(descriptor))).encode()
    except (ValueError, json_format.SerializeToJsonError):
        # A time, mask or the like that has no JSON.
        whole = b'{"startTime": "9999-99-99T99:99:99Z"}'
    return whole[: draw(st.integers(0, len(whole)))] if draw(st.booleans()) else whole


def _fill(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int, *, printable: bool) -> None:
    of_type = field.message_type
    if of_type is not None and of_type.GetOptions().map_entry:
        key, value = of_type.fields_by_name["key"], of_type.fields_by_name["value"]
        entries = getattr(message, field.name)
        if value.message_type is not None:
            entries[draw(_scalars(key, printable=printable))].CopyFrom(
                draw(messages(value.message_type, depth + 1, printable=printable))
            )
        else:
            entries[draw(_scalars(key, printable=printable))] = draw(_scalars(value, printable=printable))
        return
    if of_type is None:
        values: st.SearchStrategy[Any] = _scalars(field, printable=printable)
    else:
        values = messages(of_type, depth + 1, printable=printable)
    if field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(values, max_size=3)))
    elif of_type is not None:
        getattr(message, field.name).CopyFrom(draw(values))
    else:
        setattr(message, field.name, draw(values))


def _scalars(field: FieldDescriptor, *, printable: bool) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        # A number that the contract does not know is printed as a number.
        unknown = () if printable else (99,)
        return st.sampled_from([*(value.number for value in field.enum_type.values), *unknown])
    ranges = {
        FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    }
    if field.cpp_type in ranges:
        low, high = ranges[field.cpp_type]
        return st.sampled_from([number for number in _INTEGERS if low <= number <= high])
    if field.cpp_type in {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}:
        finite = False if printable else None
        return st.floats(width=32, allow_nan=finite, allow_infinity=finite)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=64)
    return _TEXTS
