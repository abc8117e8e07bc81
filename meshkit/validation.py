"""Validation by the rules that the contract carries (protovalidate)."""

import protovalidate
from google.protobuf.message import Message

from meshkit.errors import FieldViolation, InvalidArgument
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_MAX_VIOLATIONS = 100
_validator = protovalidate.Validator()


def validate(message: Message) -> None:
    """Refuse a message that breaks a rule of its contract, naming its fields, the first 100.

    Raises:
        InvalidArgument: it breaks a rule.
    """
    found = _validator.collect_violations(message)
    if not found:
        return
    violations = [_violation(violation.proto) for violation in found[:_MAX_VIOLATIONS]]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    first = violations[0]
    told = f"{first.field}: {first.description}" if first.field else first.description
    raise InvalidArgument(told + more, reason=ErrorReason.ERROR_REASON_INVALID_FIELD, violations=violations)


def _violation(violation: protovalidate.ViolationPb) -> FieldViolation:
    path = ""
    if violation.field is not None:
        for element in violation.field.elements:
            path += f".{element.field_name}" if path else element.field_name
            if element.subscript is not None:
                path += f"[{element.subscript.value!r}]"
    return FieldViolation(path, violation.message or violation.rule_id, violation.rule_id)
