"""What a tenant has, as files: before it is deleted, or to be kept elsewhere."""

import hashlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pyarrow.parquet as pq
from google.protobuf import json_format
from google.protobuf.message import Message
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from meshkit.status import error_info_of, reason_name
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
from twinmesh.type.v1.error_reason_pb2 import ErrorReason
from twinmesh_cli.received_file import received, whole_file
from twinmesh_cli.session import Session

MANIFEST = "manifest.json"
_R = TypeVar("_R")
_PAGE = 1_000
_DEVICES = "devices"
# One answer may take the service 15 minutes, so a year of a device is one; hardly any has older samples.
_FIRST_YEAR = 2000
# Exports of others end within their 15 minutes.
_PATIENCE_S = 1_000.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0


async def export_tenant(session: Session, folder: Path) -> str:
    """Write what the caller's tenant has into a folder: lists as JSON lines, samples as Parquet.

    Samples lie by device and year. The manifest comes last, so a folder without it is not whole. Samples of
    devices that were deleted before are not in it: nobody may ask for them. What passes, as a restart of a
    service, is waited for.

    Args:
        session: of somebody who may read all of it: devices, assets, users, history, events.
        folder: there, and empty.

    Returns:
        The export's digest: SHA-256 of its manifest, in hex.

    Raises:
        grpc.aio.AioRpcError: as the gateway or the service answered, to what passes again and again.
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
    spans = list(_spans(datetime.now(UTC).year))
    for device in devices:
        (samples / device).mkdir()
        for name, span in spans:
            await _patiently(_export_samples, session, device, span, samples / device / f"{name}.parquet")
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
        page: Any = await _patiently(session.call, method, request)
        for item in getattr(page, field):
            yield item
        request.page_token = page.next_page_token
        if not request.page_token:
            return


def _spans(this_year: int) -> Iterator[tuple[str, history_service_pb2.ExportHistoryRequest]]:
    """Yield years by name, the first one with all before it, the last one with all that runs ahead."""
    span = history_service_pb2.ExportHistoryRequest()
    span.start_time.FromSeconds(0)
    name = f"before-{_FIRST_YEAR}"
    for year in range(_FIRST_YEAR, this_year + 1):
        span.end_time.FromDatetime(datetime(year, 1, 1, tzinfo=UTC))
        yield name, span
        span = history_service_pb2.ExportHistoryRequest(start_time=span.end_time)
        name = str(year)
    yield name, span


async def _export_samples(
    session: Session, device: str, span: history_service_pb2.ExportHistoryRequest, file: Path
) -> None:
    request = history_service_pb2.ExportHistoryRequest(
        ids=[device], format=history_service_pb2.ExportFormat.EXPORT_FORMAT_PARQUET
    )
    request.MergeFrom(span)
    with whole_file(file) as out:
        await received(
            session, history_service_pb2_grpc.HistoryServiceStub(session.channel).ExportHistory, request, out
        )
    _drop_empty(file)


def _drop_empty(file: Path) -> None:
    if not pq.read_metadata(file).num_rows:
        file.unlink()


_PASSING = frozenset(
    map(reason_name, (ErrorReason.ERROR_REASON_EXPORTS_BUSY, ErrorReason.ERROR_REASON_REQUESTS_BUSY))
)


async def _patiently(call: Callable[..., Awaitable[_R]], *arguments: Any) -> _R:
    """Call until it is done, or fails with what does not pass."""
    retrying = AsyncRetrying(
        retry=retry_if_exception(_passes),
        wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
        stop=stop_after_delay(_PATIENCE_S),
        before_sleep=_tell,
        reraise=True,
    )
    return await retrying(call, *arguments)


def _passes(error: BaseException) -> bool:
    return isinstance(error, grpc.aio.AioRpcError) and (
        error.code() is grpc.StatusCode.UNAVAILABLE or error_info_of(error).reason in _PASSING
    )


def _tell(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, grpc.aio.AioRpcError):
        print(f"tried again in a moment: {error.details()}", file=sys.stderr)


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
