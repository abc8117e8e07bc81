"""The one shape of errors, and the statuses that answer with it."""

import re
from collections.abc import Iterator, Mapping

from google.protobuf.descriptor import Descriptor, EnumDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from gateway.openapi.rules import Schema
from gateway.openapi.schemas import COMPONENTS, Schemas
from meshkit.status import ERROR_DOMAIN, reason_name
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

ERROR = "google.rpc.Status"
_REASONS = "twinmesh.type.v1.ErrorReason"
_INFO = "google.rpc.ErrorInfo"
_DETAILS = (_INFO, "google.rpc.BadRequest", "google.rpc.RetryInfo", "google.rpc.QuotaFailure")
# As the transcoder has them (google/rpc/code.proto).
_CODES = {
    400: ("INVALID_ARGUMENT", "FAILED_PRECONDITION"),
    401: ("UNAUTHENTICATED",),
    403: ("PERMISSION_DENIED",),
    404: ("NOT_FOUND",),
    409: ("ALREADY_EXISTS", "ABORTED"),
    429: ("RESOURCE_EXHAUSTED",),
    500: ("INTERNAL", "DATA_LOSS"),
    501: ("UNIMPLEMENTED",),
    503: ("UNAVAILABLE",),
    504: ("DEADLINE_EXCEEDED",),
}
# The gateway's own statuses for BODY_TOO_LARGE.
_TOO_LARGE = {413: "the body is too large", 431: "path and headers are too large"}
# What each operation may answer; one with a body also 413, one that changes something also 409.
STATUSES = (400, 401, 403, 404, 429, 431, 500, 501, 503, 504)


def responses(pool: DescriptorPool, comments: Mapping[str, str]) -> dict[str, Schema]:
    """Return the error answers as components, by their names."""
    enum = pool.FindEnumTypeByName(_REASONS)
    told = {status: _described(codes, enum, comments) for status, codes in _CODES.items()}
    told |= {status: f"`BODY_TOO_LARGE`: {text}." for status, text in _TOO_LARGE.items()}
    return {
        response_name(status): {
            "description": told[status],
            "content": {"application/json": {"schema": {"$ref": f"{COMPONENTS}{ERROR}"}}},
        }
        for status in sorted(told)
    }


def response_name(status: int) -> str:
    """Return the name of the component that an error status is described in."""
    return f"Error{status}"


def add_schemas(schemas: Schemas, pool: DescriptorPool) -> None:
    """Add the schemas of errors to the components."""
    reasons = [name for name, _ in _reasons(pool.FindEnumTypeByName(_REASONS))]
    details = {name: _detail(schemas, pool.FindMessageTypeByName(name)) for name in _DETAILS}
    details[_INFO]["properties"]["reason"] = {"type": "string", "enum": reasons}
    details[_INFO]["properties"]["domain"] = {"const": ERROR_DOMAIN}
    schemas.components |= details
    schemas.components[ERROR] = {
        "type": "object",
        "description": "Every error, also the gateway's own. Program by the reason of its ErrorInfo;"
        " the message is for people and may change.",
        "properties": {
            "code": {"type": "integer", "description": "As in gRPC.", "minimum": 1, "maximum": 16},
            "message": {"type": "string"},
            "details": {
                "type": "array",
                "items": {"anyOf": [{"$ref": f"{COMPONENTS}{name}"} for name in _DETAILS]},
                "contains": {"$ref": f"{COMPONENTS}{_INFO}"},
            },
        },
        "required": ["code", "message", "details"],
    }


def _detail(schemas: Schemas, message: Descriptor) -> Schema:
    """Return the schema of a message inside of google.protobuf.Any."""
    own = schemas.object(message)
    kind = {"const": f"type.googleapis.com/{message.full_name}"}
    return own | {
        "properties": {"@type": kind, **own["properties"]},
        "required": ["@type", *(["reason", "domain"] if message.full_name == _INFO else [])],
    }


def _reasons(enum: EnumDescriptor) -> Iterator[tuple[str, str]]:
    """Yield the reasons as they are sent, with the full names of their comments."""
    for value in enum.values:
        if value.number:
            yield reason_name(ErrorReason.Value(value.name)), f"{enum.full_name}.{value.name}"


def _described(codes: tuple[str, ...], enum: EnumDescriptor, comments: Mapping[str, str]) -> str:
    lines = [" or ".join(codes)]
    for reason, place in _reasons(enum):
        text = " ".join(comments.get(place, "").split())
        # The comment of a reason names the codes that it comes with, as a sentence of its own.
        if set(re.findall(r"\b[A-Z_]{5,}\b", text)) & set(codes):
            lines.append(f"- `{reason}`: {text}")
    return "\n".join(lines)
