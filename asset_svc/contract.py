"""Who may call asset_svc, and the services that callers reach through the gateway, whoever serves them.

The gateway asks asset_svc for reflection, so asset_svc describes all of them.
Those for services only are absent: ProfileService, AuditService, RevocationService, TenantDeletionService.
"""

from meshkit.callers import GATEWAY, Callers
from twinmesh.asset.v1 import (
    asset_service_pb2,
    asset_type_service_pb2,
    device_service_pb2,
    device_type_service_pb2,
)
from twinmesh.auth.v1 import (
    api_key_service_pb2,
    audit_event_service_pb2,
    device_certificate_service_pb2,
    role_service_pb2,
    session_service_pb2,
    tenant_service_pb2,
    token_service_pb2,
    user_service_pb2,
)
from twinmesh.ingest.v1 import (
    dead_letter_service_pb2,
    ingest_policy_service_pb2,
    ingest_service_pb2,
    limit_service_pb2,
    raw_message_service_pb2,
    receipt_service_pb2,
    restore_service_pb2,
    storage_policy_service_pb2,
)
from twinmesh.mesh.v1 import health_service_pb2
from twinmesh.twin.v1 import (
    event_service_pb2,
    history_service_pb2,
    storage_service_pb2,
    twin_service_pb2,
)

_FILES = (
    api_key_service_pb2,
    asset_service_pb2,
    asset_type_service_pb2,
    audit_event_service_pb2,
    dead_letter_service_pb2,
    device_certificate_service_pb2,
    device_service_pb2,
    device_type_service_pb2,
    event_service_pb2,
    health_service_pb2,
    history_service_pb2,
    ingest_policy_service_pb2,
    ingest_service_pb2,
    limit_service_pb2,
    raw_message_service_pb2,
    receipt_service_pb2,
    restore_service_pb2,
    role_service_pb2,
    session_service_pb2,
    token_service_pb2,
    storage_policy_service_pb2,
    storage_service_pb2,
    tenant_service_pb2,
    twin_service_pb2,
    user_service_pb2,
)

PUBLIC_SERVICES = tuple(
    sorted(service.full_name for file in _FILES for service in file.DESCRIPTOR.services_by_name.values())
)

_PROFILES = "twinmesh.asset.v1.ProfileService"

CALLERS: Callers = {
    "twinmesh.asset.v1.DeviceTypeService": (GATEWAY,),
    "twinmesh.asset.v1.DeviceService": (GATEWAY,),
    "twinmesh.asset.v1.AssetTypeService": (GATEWAY,),
    "twinmesh.asset.v1.AssetService": (GATEWAY,),
    f"{_PROFILES}/BatchGetProfiles": ("ingest_svc", "twin_svc", "auth_svc"),
    f"{_PROFILES}/ListProfiles": ("twin_svc", "auth_svc"),
    f"{_PROFILES}/ListDeletedDevices": ("auth_svc",),
    f"{_PROFILES}/GetSubtree": ("twin_svc",),
    f"{_PROFILES}/BatchGetTenants": ("ingest_svc",),
    f"{_PROFILES}/BatchCheckAssets": ("ingest_svc",),
    f"{_PROFILES}/BatchGetChildren": ("ingest_svc",),
}
