"""ApiKeyService, and what other services ask of keys."""

from ipaddress import ip_network

from google.protobuf.timestamp_pb2 import Timestamp

from auth_svc.api_keys import ApiKey, ApiKeys
from auth_svc.servicers.pages import next_page_token, position, size
from auth_svc.signing_secrets import SigningKey
from meshkit import audit
from meshkit.clock import MICROS_PER_SECOND
from meshkit.errors import invalid_field
from meshkit.identity import current_principal
from meshkit.scope import Scope
from twinmesh.auth.v1 import (
    api_key_scope_service_pb2,
    api_key_scope_service_pb2_grpc,
    api_key_service_pb2_grpc,
)
from twinmesh.auth.v1 import api_key_service_pb2 as pb

_LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z, the end of Timestamp's range


class ApiKeyServicer(api_key_service_pb2_grpc.ApiKeyServiceServicer):
    """Serves twinmesh.auth.v1.ApiKeyService.

    Args:
        api_keys: the rules.
        root: the mesh's root secret, of which signing secrets are derived.
    """

    def __init__(self, *, api_keys: ApiKeys, root: bytes) -> None:
        self._api_keys = api_keys
        self._root = root

    async def CreateApiKey(self, request: pb.CreateApiKeyRequest, context: object) -> pb.CreateApiKeyResponse:
        """Make a key and tell its secret."""
        audit.changed(field.name for field, _ in request.ListFields())
        api_key, secret = await self._api_keys.create(
            current_principal(),
            display_name=request.display_name,
            permissions=request.permissions,
            expire_us=_micros(request.expire_time) if request.HasField("expire_time") else None,
            allowed_addresses=[ip_network(each) for each in request.allowed_addresses],
            scope=Scope.of(request.device_ids, request.gateway_ids),
        )
        return pb.CreateApiKeyResponse(
            id=api_key.id,
            secret=secret,
            api_key=_message(api_key),
            signing_secret=SigningKey(api_key.tenant, api_key.id, 1).text(self._root),
        )

    async def ListApiKeys(self, request: pb.ListApiKeysRequest, context: object) -> pb.ListApiKeysResponse:
        """List the tenant's keys."""
        tenant = current_principal().tenant
        question = ["api_keys", tenant]
        found, more = await self._api_keys.page(
            tenant, after=position(question, request.page_token), limit=size(request.page_size)
        )
        return pb.ListApiKeysResponse(
            api_keys=[_message(api_key) for api_key in found],
            next_page_token=next_page_token(question, found[-1].id if more else None),
        )

    async def DeleteApiKey(self, request: pb.DeleteApiKeyRequest, context: object) -> pb.DeleteApiKeyResponse:
        """Revoke a key."""
        await self._api_keys.revoke(current_principal().tenant, request.id)
        return pb.DeleteApiKeyResponse()

    async def RotateApiKey(self, request: pb.RotateApiKeyRequest, context: object) -> pb.RotateApiKeyResponse:
        """Give a key another secret and tell it."""
        audit.changed(["secret", "former_secrets_expire_time"])
        api_key, secret, generation = await self._api_keys.rotate(
            current_principal(), request.id, overlap_us=request.overlap.ToMicroseconds()
        )
        return pb.RotateApiKeyResponse(
            secret=secret,
            api_key=_message(api_key),
            signing_secret=SigningKey(api_key.tenant, api_key.id, generation).text(self._root),
        )


class ApiKeyScopeServicer(api_key_scope_service_pb2_grpc.ApiKeyScopeServiceServicer):
    """Serves twinmesh.auth.v1.ApiKeyScopeService.

    Args:
        api_keys: the rules.
    """

    def __init__(self, *, api_keys: ApiKeys) -> None:
        self._api_keys = api_keys

    async def GetApiKeyScope(
        self, request: api_key_scope_service_pb2.GetApiKeyScopeRequest, context: object
    ) -> api_key_scope_service_pb2.ApiKeyScope:
        """Answer what a key is bound to."""
        device_ids, gateway_ids = await self._api_keys.scope(request.tenant, request.id)
        return api_key_scope_service_pb2.ApiKeyScope(device_ids=device_ids, gateway_ids=gateway_ids)


def _micros(moment: Timestamp) -> int:
    if not (0 <= moment.seconds <= _LAST_SECOND and 0 <= moment.nanos < 1_000_000_000):
        raise invalid_field("expire_time", "must lie between the years 1970 and 9999")
    return moment.seconds * MICROS_PER_SECOND + moment.nanos // 1000


def _message(api_key: ApiKey) -> pb.ApiKey:
    message = pb.ApiKey(
        id=api_key.id,
        display_name=api_key.display_name,
        permissions=sorted(api_key.permissions),
        creator=api_key.creator,
        allowed_addresses=[str(network) for network in api_key.allowed_addresses],
    )
    if api_key.scope is not None:
        message.device_ids.extend(sorted(api_key.scope.device_ids))
        message.gateway_ids.extend(sorted(api_key.scope.gateway_ids))
    message.create_time.FromMicroseconds(api_key.create_us)
    if api_key.expire_us is not None:
        message.expire_time.FromMicroseconds(api_key.expire_us)
    if api_key.last_used_us is not None:
        message.last_used_time.FromMicroseconds(api_key.last_used_us)
    if api_key.former_expire_us is not None:
        message.former_secrets_expire_time.FromMicroseconds(api_key.former_expire_us)
    return message
