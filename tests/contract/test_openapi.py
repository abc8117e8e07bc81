"""The OpenAPI document says what the contract says: all of its JSON surface, and nothing else."""

import json
import re
from functools import cache
from typing import Any

import jsonschema
import openapi_spec_validator
import protovalidate
import pytest
from google.protobuf import (
    duration_pb2,
    field_mask_pb2,
    json_format,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import auth_svc.audit_formats
import twin_svc.export_formats
from gateway import local_replies
from gateway.contract import CONTRACT, read_contract
from gateway.openapi.document import path_of
from gateway.openapi.schemas import Schemas
from meshkit import errors
from meshkit.status import to_status
from tests.mesh.fuzzing import message_descriptor, messages
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

DOCUMENT: dict[str, Any] = json.loads(
    CONTRACT.with_name("openapi").joinpath("twinmesh.json").read_text("utf-8")
)
SCHEMAS: dict[str, dict[str, Any]] = DOCUMENT["components"]["schemas"]
MESSAGES = [
    name for name, schema in SCHEMAS.items() if name.startswith("twinmesh.") and schema["type"] == "object"
]
ERROR = "google.rpc.Status"
SPEED = {"name": "speed", "kind": "VALUE_KIND_DOUBLE"}
# Messages that the contract takes.
DEVICE_TYPE = ("twinmesh.asset.v1.DeviceType", {"id": "pump", "metrics": [SPEED]})
QUERY = ("twinmesh.twin.v1.QuerySeriesRequest", {"ids": ["pump-1"]})
EVENT = ("twinmesh.ingest.v1.Event", {"type": "door.opened", "deviceId": "door-1"})
USER = ("twinmesh.auth.v1.CreateUserRequest", {"user": {"username": "ada", "role": "viewer"}, "password": ""})
_validator = protovalidate.Validator()
# Of each message, of which there are many.
_counted = settings(
    max_examples=max(5, settings().max_examples // 10), suppress_health_check=[HealthCheck.too_slow]
)


def operation(method: str, path: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][path][method]
    return found


def parameters(method: str, path: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in operation(method, path)["parameters"]}


def body(method: str, path: str) -> dict[str, Any]:
    found: dict[str, Any] = operation(method, path)["requestBody"]["content"]["application/json"]["schema"]
    return found


@cache
def checker(name: str) -> jsonschema.Draft202012Validator:
    """Of the component with this name."""
    whole = SCHEMAS[name] | {"components": DOCUMENT["components"]}
    return jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker())


def test_it_is_an_openapi_document() -> None:
    openapi_spec_validator.validate(DOCUMENT)
    assert DOCUMENT["openapi"].startswith("3.1.")


def test_every_binding_is_in_it_and_nothing_else() -> None:
    told = [(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item]
    bound = [
        (binding.method, path_of(binding)) for rpc in read_contract(CONTRACT).rpcs for binding in rpc.bindings
    ]
    assert sorted(told) == sorted(bound)
    # Paths that differ by the names of their parameters would be one path written twice.
    assert len({re.sub(r"\{\w+\}", "{}", path) for path in DOCUMENT["paths"]}) == len(DOCUMENT["paths"])
    for path, item in DOCUMENT["paths"].items():
        for described in item.values():
            inside = [one["name"] for one in described.get("parameters", []) if one["in"] == "path"]
            assert inside == re.findall(r"\{(\w+)\}", path)


def test_every_operation_says_what_its_caller_must_hold() -> None:
    needed: dict[str, list[Any]] = {"public": [], "authenticated": [{"bearerAuth": []}]}
    for rpc in read_contract(CONTRACT).rpcs:
        for binding in rpc.bindings:
            told = operation(binding.method.lower(), path_of(binding))["security"]
            assert told == needed.get(rpc.permission, [{"bearerAuth": [rpc.permission]}]), rpc.path


def test_the_contract_s_words_are_in_it() -> None:
    assert operation("get", "/v1/twins:watch")["description"].startswith("WatchTwins streams the twins")
    assert SCHEMAS["twinmesh.asset.v1.DeviceType"]["description"]
    for name, schema in SCHEMAS.items():
        for field in schema.get("properties", {}).values():
            assert not name.startswith("twinmesh.") or field.get("description"), (name, field)


def test_parameters_of_a_query_are_what_path_and_body_leave() -> None:
    asked = parameters("get", "/v1/history:query")
    assert asked["ids"]["required"]
    assert asked["ids"]["schema"]["minItems"] == 1
    assert asked["maxPoints"]["schema"]["type"] == "integer"
    assert asked["startTime"]["schema"] == {"type": "string", "format": "date-time"}
    assert not asked["startTime"].get("required")
    assert "parameters" not in operation("post", "/v1/history:query")
    # A message is one parameter for each of its fields.
    assert {"filter.deviceId", "filter.startTime", "pageSize"} <= parameters("get", "/v1/deadLetters").keys()
    changed = parameters("patch", "/v1/users/{username}")
    assert {name: one["in"] for name, one in changed.items()} == {"username": "path", "updateMask": "query"}


def test_a_body_does_not_repeat_what_the_path_says() -> None:
    assert body("post", "/v1/deviceTypes") == {"$ref": "#/components/schemas/twinmesh.asset.v1.DeviceType"}
    changed = body("patch", "/v1/deviceTypes/{id}")
    whole = SCHEMAS["twinmesh.asset.v1.DeviceType"]
    assert changed["properties"].keys() == whole["properties"].keys() - {"id"}
    assert "id" in whole["required"]
    assert "id" not in changed.get("required", [])
    assert "username" not in body("post", "/v1/users/{username}:resetPassword")["properties"]


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        # Text: its pattern, its length; a name that is taken.
        (DEVICE_TYPE, {"id": "Pump"}),
        (DEVICE_TYPE, {"displayName": "x" * 257}),
        (DEVICE_TYPE, {"metrics": [SPEED | {"name": "location"}]}),
        # A member that cannot be left out, and values of enums that are not taken.
        (DEVICE_TYPE, {"id": None}),
        (DEVICE_TYPE, {"metrics": [{"name": "speed"}]}),
        (DEVICE_TYPE, {"metrics": [SPEED | {"kind": "VALUE_KIND_UNSPECIFIED"}]}),
        (DEVICE_TYPE, {"protocol": "PROTOCOL_SMOKE"}),
        # Numbers, durations, maps.
        (DEVICE_TYPE, {"quality": {"validityWeight": -1}}),
        (DEVICE_TYPE, {"jointAnomaly": {"warmUp": 15}}),
        (DEVICE_TYPE, {"heartbeat": "-1s"}),
        (DEVICE_TYPE, {"messageSchema": {"pointers": {"0": "/a"}}}),
        (DEVICE_TYPE, {"messageSchema": {"pointers": {"a": "a"}}}),
        # Lists.
        (QUERY, {"ids": []}),
        (QUERY, {"ids": ["a", "a"]}),
        (QUERY, {"ids": [f"a{number}" for number in range(1001)]}),
        (QUERY, {"pageSize": -1}),
        (QUERY, {"statistics": ["STATISTIC_UNSPECIFIED"]}),
        # One of several, and not two.
        (EVENT, {"deviceId": None}),
        (EVENT, {"assetId": "a"}),
        # Empty or long enough.
        (USER, {"password": "short"}),
    ],
)
def test_limits_of_the_contract_are_in_it(good: tuple[str, dict[str, Any]], bad: dict[str, Any]) -> None:
    name, members = good
    check = checker(name)
    check.validate(members)
    changed = {key: value for key, value in (members | bad).items() if value is not None}
    with pytest.raises(jsonschema.ValidationError):
        check.validate(changed)
    message = message_factory.GetMessageClass(message_descriptor(name))()
    try:
        json_format.ParseDict(changed, message)
    except json_format.ParseError:
        return
    assert _validator.collect_violations(message)


def _refused_members(name: str, value: dict[str, Any]) -> set[str]:
    """Which members a schema finds wrong; "" stands for the object itself."""
    refused: set[str] = set()
    for error in checker(name).iter_errors(value):
        if error.absolute_path:
            refused.add(str(error.absolute_path[0]))
        elif error.validator == "required":
            refused |= set(SCHEMAS[name]["required"]) - value.keys()
        else:
            refused.add("")
    return refused


def _refused_fields(message: Message) -> set[str]:
    """The same of the contract's rules."""
    refused: set[str] = set()
    for violation in _validator.collect_violations(message):
        path = violation.proto.field
        field = message.DESCRIPTOR.fields_by_name.get(path.elements[0].field_name or "") if path else None
        refused.add(field.json_name if field is not None else "")
    return refused


@pytest.mark.parametrize(
    "message",
    [
        wrappers_pb2.Int64Value(value=-(2**63)),
        wrappers_pb2.UInt64Value(value=2**64 - 1),
        wrappers_pb2.Int32Value(value=-1),
        wrappers_pb2.UInt32Value(value=2**32 - 1),
        wrappers_pb2.DoubleValue(value=0.5),
        wrappers_pb2.FloatValue(value=0.5),
        wrappers_pb2.BoolValue(),
        wrappers_pb2.StringValue(),
        wrappers_pb2.BytesValue(value=b"\0\xff"),
        timestamp_pb2.Timestamp(seconds=-62135596800, nanos=1),
        duration_pb2.Duration(seconds=-315576000000, nanos=-1),
        field_mask_pb2.FieldMask(paths=["display_name", "device.asset_id"]),
        struct_pb2.Struct(fields={"a": struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)}),
        struct_pb2.ListValue(values=[struct_pb2.Value(bool_value=True)]),
        struct_pb2.Value(number_value=1),
    ],
    ids=lambda message: message.DESCRIPTOR.name,
)
def test_well_known_types_have_json_of_their_own(message: Any) -> None:
    printed = json.loads(json_format.MessageToJson(message))
    schema = Schemas({}).message(message.DESCRIPTOR)
    check = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    check.validate(printed)
    assert message.DESCRIPTOR.name == "Value" or not check.is_valid(None)


@pytest.mark.parametrize("name", MESSAGES)
@_counted
@given(data=st.data())
def test_what_is_printed_of_a_message_is_valid_but_for_what_the_rules_refuse(
    name: str, data: st.DataObject
) -> None:
    message = data.draw(messages(message_descriptor(name.removesuffix("-unchecked")), printable=True))
    # As the gateway prints it, and as clients do.
    with_defaults = data.draw(st.booleans())
    value = json_format.MessageToDict(message, always_print_fields_with_no_presence=with_defaults)
    assert _refused_members(name, value) <= _refused_fields(message)


@pytest.mark.parametrize(
    "answer",
    [
        errors.NotFound("no", reason=ErrorReason.ERROR_REASON_NOT_FOUND, metadata={"id": "a"}),
        errors.InvalidArgument(
            "no",
            reason=ErrorReason.ERROR_REASON_INVALID_FIELD,
            violations=[errors.FieldViolation("device.id", "does not match", "string.pattern")],
        ),
        errors.dependency_unavailable("postgres"),
        errors.ResourceExhausted(
            "no",
            reason=ErrorReason.ERROR_REASON_LIMIT_EXCEEDED,
            retry_after_s=1.5,
            quota=errors.QuotaViolation(subject="tenant", description="too fast", name="samples", limit=7),
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_services_have_the_one_shape(answer: errors.DomainError) -> None:
    check = checker(ERROR)
    printed = json_format.MessageToDict(to_status(answer), always_print_fields_with_no_presence=True)
    check.validate(printed)
    printed["details"][0]["reason"] = "MADE_UP"
    assert not check.is_valid(printed)
    assert not check.is_valid(printed | {"details": printed["details"][1:]})


def test_errors_of_the_gateway_have_the_one_shape() -> None:
    bodies = [
        mapper["body_format_override"]["json_format"]
        for mapper in local_replies.mappers(for_devices=True)
        if "json_format" in mapper["body_format_override"]
    ]
    assert bodies
    for told in bodies:
        checker(ERROR).validate(told)


def test_every_reason_is_told_where_it_is_answered() -> None:
    told = DOCUMENT["components"]["responses"]
    assert "`ETAG_MISMATCH`" in told["Error409"]["description"]
    assert "`ETAG_MISMATCH`" not in told["Error400"]["description"]
    assert "`BODY_TOO_LARGE`" in told["Error413"]["description"]
    for path, item in DOCUMENT["paths"].items():
        for described in item.values():
            refused = {status for status in described["responses"] if status != "200"}
            assert {"400", "401", "403", "404", "429", "500", "503", "504"} <= refused, path


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("/v1/history:export", twin_svc.export_formats.CONTENT_TYPES.values()),
        ("/v1/auditEvents:export", auth_svc.audit_formats.CONTENT_TYPES.values()),
    ],
)
def test_files_are_of_the_kinds_that_are_told(path: str, kinds: Any) -> None:
    told = operation("get", path)["responses"]["200"]["content"]
    assert told.keys() == {kind.partition(";")[0] for kind in kinds}


def test_a_watch_is_server_sent_events() -> None:
    told = operation("get", "/v1/twins:watch")["responses"]["200"]["content"]
    assert told["text/event-stream"]["schema"]["x-event-data"] == {
        "$ref": "#/components/schemas/twinmesh.twin.v1.WatchTwinsResponse"
    }
