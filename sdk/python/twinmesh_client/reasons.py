"""The contract's reasons as users read them."""

from twinmesh.type.v1.error_reason_pb2 import ErrorReason


def reason_name(reason: ErrorReason.ValueType) -> str:
    """Return a reason without its prefix, such as "DEVICE_UNKNOWN"; empty for none."""
    return ErrorReason.Name(reason).removeprefix("ERROR_REASON_") if reason else ""
