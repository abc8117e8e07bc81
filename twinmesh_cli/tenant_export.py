"""What a tenant has, as files: before it is deleted, or to be kept elsewhere."""

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from twinmesh.asset.v1 import (
    asset_service_pb2,
    asset_service_pb2_grpc,
    asset_type_service_pb2,
    asset_type_service_pb2_grpc,
    device_service_pb2,
    device_service_pb2_grpc,
    device_type_service_pb2,
    device_type_service_pb2_grpc,
)
from twinmesh.auth.v1 import (
    role_service_pb2,
    role_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)
from twinmesh.twin.v1 import (
    event_service_pb2,
    event_service_pb2_grpc,
    history_service_pb2,
    history_service_pb2_grpc,
)
from twinmesh_cli.received_file import received, whole_file
from twinmesh_cli.session import Session

MANIFEST = "manifest.json"
_PAGE = 1_000
_DEVICES = "devices"
_CHUNK = 1 << 20


async def export_tenant(session: Session, folder: Path) -> str:
    """Write what the caller's tenant has into a folder: lists as JSON lines, samples as Parquet by device.

    The manifest comes last, so a folder without it is not whole.

    Args:
        session: of somebody who may read all of it: devices, assets, users, history, events.
        folder: there, and empty.

    Returns:
        The export's digest: SHA-256 of its manifest, in hex.

    Raises:
        grpc.aio.AioRpcError: as the gateway or the service answered.
        OSError: the folder cannot be written.
    """
    me = await session.call(
        session_service_pb2_grpc.SessionServiceStub(session.channel).GetMe, session_service_pb2.GetMeRequest()
    )
    devices: list[str] = []
    for name, (method, request) in _lists(session).items():
        with whole_file(folder / f"{name}.jsonl") as out:
            async for item in _items(session, method, request, name):
                line = json_format.MessageToDict(item)
                out.write(json.dumps(line, ensure_ascii=False, sort_keys=True).encode() + b"\n")
                if name == _DEVICES:
                    devices.append(line["id"])
    samples = folder / "samples"
    samples.mkdir()
    for device in devices:
        await _export_samples(session, device, samples / f"{device}.parquet")
    return _write_manifest(folder, me.tenant)


def _lists(session: Session) -> Mapping[str, tuple[Any, Any]]:
    """Return rpcs that list, and their requests, by the name of what they list."""
    channel: Any = session.channel
    return {
        "asset_types": (
            asset_type_service_pb2_grpc.AssetTypeServiceStub(channel).ListAssetTypes,
            asset_type_service_pb2.ListAssetTypesRequest(),
        ),
        "assets": (
            asset_service_pb2_grpc.AssetServiceStub(channel).ListAssets,
            asset_service_pb2.ListAssetsRequest(),
        ),
        "device_types": (
            device_type_service_pb2_grpc.DeviceTypeServiceStub(channel).ListDeviceTypes,
            device_type_service_pb2.ListDeviceTypesRequest(),
        ),
        _DEVICES: (
            device_service_pb2_grpc.DeviceServiceStub(channel).ListDevices,
            device_service_pb2.ListDevicesRequest(),
        ),
        "users": (
            user_service_pb2_grpc.UserServiceStub(channel).ListUsers,
            user_service_pb2.ListUsersRequest(),
        ),
        "roles": (
            role_service_pb2_grpc.RoleServiceStub(channel).ListRoles,
            role_service_pb2.ListRolesRequest(),
        ),
        "events": (
            event_service_pb2_grpc.EventServiceStub(channel).ListEvents,
            event_service_pb2.ListEventsRequest(),
        ),
    }


async def _items(session: Session, method: Any, request: Any, field: str) -> AsyncIterator[Message]:
    request.page_size = _PAGE
    while True:
        page: Any = await session.call(method, request)
        for item in getattr(page, field):
            yield item
        request.page_token = page.next_page_token
        if not request.page_token:
            return


async def _export_samples(session: Session, device: str, file: Path) -> None:
    request = history_service_pb2.ExportHistoryRequest(
        ids=[device], format=history_service_pb2.ExportFormat.EXPORT_FORMAT_PARQUET
    )
    request.start_time.FromSeconds(0)
    with whole_file(file) as out:
        await received(
            session, history_service_pb2_grpc.HistoryServiceStub(session.channel).ExportHistory, request, out
        )


def _write_manifest(folder: Path, tenant: str) -> str:
    files = [
        {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    manifest = {"tenant": tenant, "export_time": datetime.now(UTC).isoformat(), "files": files}
    content = json.dumps(manifest, indent=1).encode() + b"\n"
    with whole_file(folder / MANIFEST) as out:
        out.write(content)
    return hashlib.sha256(content).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
