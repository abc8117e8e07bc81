"""Each write of the control plane is recorded with the names of the fields that it changed."""

import uuid
from typing import Any

import httpx
import pytest

from gateway.contract import CONTRACT, read_contract
from meshkit.identity import INSTALLATION_PERMISSIONS
from meshkit.testing.auth import bearer
from meshkit.testing.certificates import csr, new_key
from meshkit.testing.mesh import Mesh
from tests.mesh.audit_events import event

_NAME = f"written-{uuid.uuid4().hex[:8]}"
_DAY = {"startTime": "2026-01-01T00:00:00Z", "endTime": "2026-01-02T00:00:00Z"}
_KEPT = {"storagePolicy": {"minuteRollupsKept": "8640000s"}}
_CSR = csr(new_key())
# What is written, in an order in which all of it can be, and which fields that changes; {key} and
# {certificate} are ids that services give. Deletions change no field.
_WRITES: list[tuple[str, str, dict[str, Any], list[str]]] = [
    ("CreateAssetType", "POST /v1/assetTypes", {"id": _NAME, "displayName": "a"}, ["display_name", "id"]),
    ("UpdateAssetType", f"PATCH /v1/assetTypes/{_NAME}", {"displayName": "b"}, ["display_name"]),
    ("CreateAsset", "POST /v1/assets", {"id": _NAME, "assetTypeId": _NAME}, ["asset_type_id", "id"]),
    ("UpdateAsset", f"PATCH /v1/assets/{_NAME}", {"tags": ["a"]}, ["tags"]),
    ("CreateDeviceType", "POST /v1/deviceTypes", {"id": _NAME, "displayName": "a"}, ["display_name", "id"]),
    ("UpdateDeviceType", f"PATCH /v1/deviceTypes/{_NAME}", {"displayName": "b"}, ["display_name"]),
    ("CreateDevice", "POST /v1/devices", {"id": _NAME, "deviceTypeId": _NAME}, ["device_type_id", "id"]),
    ("UpdateDevice", f"PATCH /v1/devices/{_NAME}", {"displayName": "b"}, ["display_name"]),
    (
        "BatchCreateDevices",
        "POST /v1/devices:batchCreate",
        {"devices": [{"id": f"{_NAME}-2", "deviceTypeId": _NAME}]},
        ["device_type_id", "id"],
    ),
    ("CreateRole", "POST /v1/roles", {"id": _NAME, "permissions": ["twin:read"]}, ["id", "permissions"]),
    ("UpdateRole", f"PATCH /v1/roles/{_NAME}", {"permissions": ["device:read"]}, ["permissions"]),
    (
        "CreateUser",
        "POST /v1/users",
        {"user": {"username": _NAME, "role": _NAME}},
        ["role", "username", "password"],
    ),
    ("UpdateUser", f"PATCH /v1/users/{_NAME}", {"role": "viewer"}, ["role"]),
    ("ResetPassword", f"POST /v1/users/{_NAME}:resetPassword", {}, ["password"]),
    ("CreateApiKey", "POST /v1/apiKeys", {"displayName": "a"}, ["display_name"]),
    (
        "RotateApiKey",
        "POST /v1/apiKeys/{key}:rotate",
        {"overlap": "60s"},
        ["secret", "former_secrets_expire_time"],
    ),
    (
        "IssueDeviceCertificate",
        "POST /v1/deviceCertificates",
        {"deviceId": _NAME, "csr": _CSR},
        ["device_id", "csr"],
    ),
    ("RevokeDeviceCertificate", "POST /v1/deviceCertificates/{certificate}:revoke", {}, ["revoke_time"]),
    ("UpdateIngestPolicy", "PATCH /v1/ingestPolicy", {"rawEnabled": False}, ["raw_enabled"]),
    ("PreviewStoragePolicy", "POST /v1/storage:preview", _KEPT, []),
    (
        "UpdateStoragePolicy",
        "PATCH /v1/storagePolicy",
        {"minuteRollupsKept": "8640000s"},
        ["minute_rollups_kept"],
    ),
    ("CreateBackfill", "POST /v1/backfills", _DAY, ["end_time", "start_time"]),
    # There is no archive here to restore from; what was asked for is recorded all the same.
    ("CreateRestore", "POST /v1/restores", _DAY, ["end_time", "start_time"]),
]


@pytest.fixture(scope="module")
def token(mesh: Mesh) -> str:
    """Token of an administrator of a tenant of its own, whose policies are nobody else's."""
    mesh.add_tenant(_NAME)
    return mesh.log_in(tenant=_NAME)


def test_every_write_is_in_the_account_with_its_fields(mesh: Mesh, token: str) -> None:
    wrong, ids = [], {"key": "", "certificate": ""}
    with httpx.Client(base_url=mesh.url, headers=dict(bearer(token)), timeout=30) as client:
        for name, route, body, fields in _WRITES:
            method, _, path = route.partition(" ")
            answer = client.request(method, path.format(**ids), json=body)
            assert answer.is_success or name == "CreateRestore", (name, answer.text)
            if name in ("CreateApiKey", "IssueDeviceCertificate"):
                ids["key" if name == "CreateApiKey" else "certificate"] = answer.json()["id"]
            found = event(mesh, token, answer.headers["x-trace-id"])
            if (found["rpc"].rpartition("/")[2], found["changedFields"]) != (name, fields):
                wrong.append(f"{name}: {found}")
    assert not wrong, "\n".join(wrong)


def test_no_write_is_left_out() -> None:
    writes = {
        rpc.name
        for rpc in read_contract(CONTRACT).rpcs
        if rpc.name.startswith(("Create", "BatchCreate", "Update", "Reset", "Rotate", "Issue", "Revoke"))
        if rpc.permission not in INSTALLATION_PERMISSIONS
    }
    assert {name for name, *_ in _WRITES} == writes | {"PreviewStoragePolicy"}
