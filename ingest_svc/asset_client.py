"""asset_svc as ingest sees it: the source of profiles, and news of their changes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from ingest_svc.conversion import to_profiles
from ingest_svc.profile import DeviceProfile
from ingest_svc.profile_cache import ProfileCache
from meshkit.client import call
from meshkit.errors import DomainError, dependency_unavailable
from twinmesh.asset.v1 import profile_service_pb2 as profile_pb2
from twinmesh.asset.v1 import profile_service_pb2_grpc as profile_grpc

_log = structlog.get_logger()
_PEER = "asset_svc"
_SUBJECT = "asset.changed."


class AssetProfiles:
    """Reads profiles from asset_svc with this service's own identity."""

    def __init__(self, *, channel: grpc.aio.Channel) -> None:
        self._stub = profile_grpc.ProfileServiceStub(channel)

    async def fetch(self, tenant: str, device_ids: Sequence[str]) -> Mapping[str, DeviceProfile]:
        """Return those of up to 10,000 devices that exist in the tenant, by id.

        Raises:
            Unavailable: asset_svc does not answer, or not with profiles.
        """
        request = profile_pb2.BatchGetProfilesRequest(tenant=tenant, device_ids=device_ids)
        try:
            return to_profiles(await call(self._stub.BatchGetProfiles, request, peer=_PEER))
        except DomainError as error:
            # Whatever is wrong between two services is not the caller's mistake.
            _log.warning("profiles cannot be read", tenant=tenant, error=str(error))
            raise dependency_unavailable(_PEER) from error


@dataclass(frozen=True, slots=True)
class _Change:
    device_ids: Sequence[str]
    device_type_ids: Sequence[str]


async def follow_changes(bus: Client, cache: ProfileCache) -> None:
    """Make the cache forget what asset_svc announces as changed, as long as the bus is open."""

    async def on_change(message: Msg) -> None:
        try:
            change = _parse(message.data)
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("announcement not understood", subject=message.subject, error=repr(error))
            cache.distrust()
            return
        cache.forget(
            message.subject.removeprefix(_SUBJECT),
            device_ids=change.device_ids,
            device_type_ids=change.device_type_ids,
        )

    await bus.subscribe(f"{_SUBJECT}*", cb=on_change)


def _parse(payload: bytes) -> _Change:
    fields = json.loads(payload)
    return _Change([str(item) for item in fields["devices"]], [str(item) for item in fields["device_types"]])
