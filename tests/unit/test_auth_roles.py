from google.protobuf import descriptor_pool

from auth_svc.roles import Role, built_in_roles, permissions_of
from meshkit import policy
from meshkit.identity import INSTALLATION_PERMISSIONS, SERVICE_PERMISSIONS
from twinmesh.asset.v1 import (
    asset_service_pb2,
    asset_type_service_pb2,
    device_service_pb2,
    device_type_service_pb2,
    profile_service_pb2,
)
from twinmesh.auth.v1 import (
    api_key_service_pb2,
    device_certificate_service_pb2,
    permission_pb2,
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
from twinmesh.twin.v1 import event_service_pb2, storage_service_pb2, twin_service_pb2

_CONTRACTS = [
    api_key_service_pb2,
    asset_service_pb2,
    dead_letter_service_pb2,
    asset_type_service_pb2,
    device_certificate_service_pb2,
    device_service_pb2,
    device_type_service_pb2,
    event_service_pb2,
    health_service_pb2,
    ingest_policy_service_pb2,
    ingest_service_pb2,
    limit_service_pb2,
    profile_service_pb2,
    receipt_service_pb2,
    restore_service_pb2,
    raw_message_service_pb2,
    role_service_pb2,
    session_service_pb2,
    token_service_pb2,
    storage_policy_service_pb2,
    storage_service_pb2,
    tenant_service_pb2,
    twin_service_pb2,
    user_service_pb2,
]


def _declared_permissions() -> set[str]:
    declared = set()
    for contract in _CONTRACTS:
        file = descriptor_pool.Default().FindFileByName(contract.DESCRIPTOR.name)
        for service in file.services_by_name.values():
            for method in service.methods:
                declared.add(method.GetOptions().Extensions[permission_pb2.permission])
    return declared - {policy.PUBLIC, policy.AUTHENTICATED}


def test_admin_may_call_every_rpc_but_those_of_services_and_operators() -> None:
    others = SERVICE_PERMISSIONS | INSTALLATION_PERMISSIONS
    assert _declared_permissions() - others <= permissions_of(Role.ADMIN)


def test_one_role_alone_keeps_the_installation_and_one_tenant_alone_has_it() -> None:
    assert _declared_permissions() >= INSTALLATION_PERMISSIONS
    holders = [role for role in Role if permissions_of(role) & INSTALLATION_PERMISSIONS]
    assert holders == [Role.INSTALLATION_ADMIN]
    assert built_in_roles("system") == tuple(Role)
    assert set(built_in_roles("demo")) == set(Role) - set(holders)


def test_no_role_holds_what_only_services_may() -> None:
    for role in Role:
        assert not permissions_of(role) & SERVICE_PERMISSIONS, role


def test_roles_carry_what_the_documentation_says() -> None:
    admin = permissions_of(Role.ADMIN)
    assert admin - permissions_of(Role.OPERATOR) == {
        "api_key:read",
        "api_key:write",
        "audit:read",
        "device_certificate:write",
        "ingest_policy:write",
        "role:read",
        "role:write",
        "storage:write",
        "user:read",
        "user:write",
    }
    readable = {permission for permission in admin if permission.endswith(":read")}
    assert permissions_of(Role.ANALYST) == readable - {
        "api_key:read",
        "audit:read",
        "device_certificate:read",
        "ingest_policy:read",
        "role:read",
        "storage:read",
        "user:read",
    }
    assert permissions_of(Role.VIEWER) == {
        "twin:read",
        "history:read",
        "event:read",
        "device:read",
        "device_type:read",
        "asset:read",
        "contract:read",
    }
    assert permissions_of(Role.API_CLIENT) == {
        "telemetry:write",
        "twin:read",
        "history:read",
        "event:read",
        "device:read",
        "device_type:read",
        "contract:read",
    }
