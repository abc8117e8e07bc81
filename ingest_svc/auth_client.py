"""auth_svc as ingest sees it: what a credential proves that comes on an open stream, and keys' scopes."""

import grpc
from google.protobuf import json_format
from google.rpc import code_pb2, status_pb2

from envoy_api import external_auth_pb2 as external_auth
from envoy_api import external_auth_pb2_grpc as external_auth_grpc
from meshkit import status
from meshkit.caller_address import ADDRESS_HEADER
from meshkit.client import call, unavailable
from meshkit.errors import DomainError
from meshkit.identity import Principal, TokenVerifier
from meshkit.scope import Scope
from twinmesh.auth.v1 import api_key_scope_service_pb2 as scope_pb2
from twinmesh.auth.v1 import api_key_scope_service_pb2_grpc as scope_grpc
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_PEER = "auth_svc"
_API_KEY = "tmk_"
_SCHEME = "Bearer "


class AuthCredentials:
    """Verifies access tokens and API keys.

    Args:
        channel: to auth_svc.
        verifier: proves access tokens.
    """

    def __init__(self, *, channel: grpc.aio.Channel, verifier: TokenVerifier) -> None:
        self._stub = external_auth_grpc.AuthorizationStub(channel)
        self._verifier = verifier

    async def verify(self, credential: str, *, address: str) -> Principal:
        """Return the principal that an access token or API key proves.

        Args:
            credential: either.
            address: where whoever shows it is.

        Raises:
            Unauthenticated: TOKEN_INVALID or API_KEY_INVALID.
            PermissionDenied: TENANT_SUSPENDED or ADDRESS_NOT_ALLOWED.
            ResourceExhausted: LOGIN_LIMITED.
            Unavailable: auth_svc is away.
        """
        if credential.startswith(_API_KEY):
            credential = await self._exchange(credential, address)
        return await self._verifier.verify(credential)

    async def _exchange(self, api_key: str, address: str) -> str:
        """Return an access token for an API key, from the rpc by which Envoy gets one."""
        request = external_auth.CheckRequest()
        request.attributes.request.http.headers["authorization"] = _SCHEME + api_key
        request.attributes.request.http.headers[ADDRESS_HEADER] = address
        answer = await call(self._stub.Check, request, peer=_PEER)
        if answer.status.code != code_pb2.OK:
            raise status.from_status(_told(answer.denied_response.body), peer=_PEER)
        headers = {option.header.key: option.header.value for option in answer.ok_response.headers}
        return headers["authorization"].removeprefix(_SCHEME)


class AuthKeyScopes:
    """Reads the scopes of API keys from auth_svc with this service's own identity.

    Args:
        channel: to auth_svc.
    """

    def __init__(self, *, channel: grpc.aio.Channel) -> None:
        self._stub = scope_grpc.ApiKeyScopeServiceStub(channel)

    async def of_key(self, tenant: str, key_id: str) -> Scope | None:
        """Return a key's scope, None when it is bound to no devices.

        A key that nobody knows is bound to devices of which there are none.

        Raises:
            Unavailable: auth_svc does not answer, or not with a scope.
        """
        request = scope_pb2.GetApiKeyScopeRequest(tenant=tenant, id=key_id)
        try:
            found = await call(self._stub.GetApiKeyScope, request, peer=_PEER)
        except DomainError as error:
            if error.reason == ErrorReason.ERROR_REASON_NOT_FOUND:
                return Scope()
            raise unavailable(_PEER, error) from error
        return Scope.of(found.device_ids, found.gateway_ids)


def _told(body: str) -> status_pb2.Status:
    """Return a refusal from the JSON that auth_svc has for callers."""
    return json_format.Parse(body, status_pb2.Status())
