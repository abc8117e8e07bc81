"""What whoever shows a good credential of a suspended tenant is told."""

from meshkit.errors import PermissionDenied
from twinmesh.type.v1.error_reason_pb2 import ErrorReason


def tenant_suspended() -> PermissionDenied:
    """Return the refusal; only for callers whose credential was found good."""
    return PermissionDenied(
        "the tenant is suspended; the operators of the installation can resume it",
        reason=ErrorReason.ERROR_REASON_TENANT_SUSPENDED,
    )
