"""A stand-in for auth_svc: it has a key, mints and revokes tokens, exchanges API keys, takes audits."""

import json
import secrets as random_secrets
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import json_format

from envoy_api import external_auth_pb2, external_auth_pb2_grpc
from meshkit import status
from meshkit.caller_address import ADDRESS_HEADER
from meshkit.errors import DomainError, Unauthenticated
from meshkit.identity import AUDIENCE, ISSUER, TOKEN_ALGORITHM, TOKEN_TYPE
from meshkit.revocations import KEPT_S, RevocationKind
from meshkit.scope import Scope
from meshkit.testing import identities
from twinmesh.auth.v1 import (
    api_key_scope_service_pb2,
    api_key_scope_service_pb2_grpc,
    audit_event_service_pb2,
    audit_service_pb2,
    audit_service_pb2_grpc,
    revocation_service_pb2,
    revocation_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
)
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_LIFE_S = 900
_BAD_KEY = Unauthenticated("no good key", reason=ErrorReason.ERROR_REASON_API_KEY_INVALID)


class TokenMint:
    """Mints access tokens as auth_svc does, signed by a key of its own."""

    def __init__(self, *, kid: str = "test-key") -> None:
        self._key = Ed25519PrivateKey.generate()
        self._kid = kid
        self.audit_events: list[audit_event_service_pb2.AuditEvent] = []  # as services have recorded them
        self.api_keys: dict[str, str] = {}  # access tokens by the API key that is exchanged for them
        self.key_refusals: dict[str, DomainError] = {}  # of API keys that are refused otherwise than others
        self.key_addresses: list[str] = []  # from which API keys were shown
        self.key_scopes: dict[str, Scope] = {}  # by the id of the API key; others are bound to no devices
        self.revocations: list[revocation_service_pb2.Revocation] = []

    def jwk(self) -> dict[str, str]:
        """Return the public key as a JWK."""
        public = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(self._key.public_key()))
        return {**public, "kid": self._kid, "alg": TOKEN_ALGORITHM, "use": "sig"}

    def token(
        self, *, tenant: str, permissions: Iterable[str], subject: str = "tester", **claims: Any
    ) -> str:
        """Return a token for a user; further claims replace the usual ones."""
        now = int(time.time())
        payload = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": subject,
            "tenant": tenant,
            "kind": "user",
            "role": "operator",
            "perms": sorted(permissions),
            "cred_id": "test-session",
            "cred_exp": now + _LIFE_S,
            "jti": random_secrets.token_hex(8),
            "iat": now,
            "nbf": now,
            "exp": now + _LIFE_S,
            **claims,
        }
        return jwt.encode(
            payload, self._key, algorithm=TOKEN_ALGORITHM, headers={"kid": self._kid, "typ": TOKEN_TYPE}
        )

    def revoke(self, kind: RevocationKind, id_: str, *, tenant: str) -> None:
        """Revoke something; services read of it within a second."""
        revocation = revocation_service_pb2.Revocation(
            number=len(self.revocations) + 1,
            tenant=tenant,
            kind=revocation_service_pb2.RevocationKind.Value(f"REVOCATION_KIND_{kind.name}"),
            id=id_,
        )
        revocation.revoke_time.GetCurrentTime()
        revocation.until_time.FromSeconds(revocation.revoke_time.seconds + KEPT_S)
        self.revocations.append(revocation)


class _FakeSessions(session_service_pb2_grpc.SessionServiceServicer):
    def __init__(self, mint: TokenMint) -> None:
        self._mint = mint

    async def GetJwks(self, request: Any, context: Any) -> session_service_pb2.GetJwksResponse:  # noqa: N802
        return session_service_pb2.GetJwksResponse(keys=[session_service_pb2.Jwk(**self._mint.jwk())])


class _FakeRevocations(revocation_service_pb2_grpc.RevocationServiceServicer):
    def __init__(self, mint: TokenMint) -> None:
        self._mint = mint

    async def ListRevocations(  # noqa: N802
        self, request: Any, context: Any
    ) -> revocation_service_pb2.ListRevocationsResponse:
        new = self._mint.revocations[request.after_number :]
        return revocation_service_pb2.ListRevocationsResponse(revocations=new)


class _FakeAudit(audit_service_pb2_grpc.AuditServiceServicer):
    def __init__(self, mint: TokenMint) -> None:
        self._mint = mint

    async def RecordAuditEvents(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._mint.audit_events += request.events
        return audit_service_pb2.RecordAuditEventsResponse()


class _FakeKeyScopes(api_key_scope_service_pb2_grpc.ApiKeyScopeServiceServicer):
    def __init__(self, mint: TokenMint) -> None:
        self._mint = mint

    async def GetApiKeyScope(self, request: Any, context: Any) -> Any:  # noqa: N802
        scope = self._mint.key_scopes.get(request.id, Scope())
        return api_key_scope_service_pb2.ApiKeyScope(**scope.claims)


class _FakeAuthorization(external_auth_pb2_grpc.AuthorizationServicer):
    def __init__(self, mint: TokenMint) -> None:
        self._mint = mint

    async def Check(self, request: external_auth_pb2.CheckRequest, context: Any) -> Any:  # noqa: N802
        headers = request.attributes.request.http.headers
        self._mint.key_addresses.append(headers[ADDRESS_HEADER])
        key = headers["authorization"].removeprefix("Bearer ")
        token = self._mint.api_keys.get(key)
        answer = external_auth_pb2.CheckResponse()
        if token is None:
            told = status.to_status(self._mint.key_refusals.get(key, _BAD_KEY))
            answer.status.code = told.code
            answer.denied_response.body = json_format.MessageToJson(told)
        else:
            header = answer.ok_response.headers.add().header
            header.key, header.value = "authorization", f"Bearer {token}"
        return answer


@asynccontextmanager
async def fake_auth(mint: TokenMint) -> AsyncIterator[str]:
    """Serve a mint's key, revocations, audit, scopes of keys, and Check for its keys; yields the address."""
    server = grpc.aio.server()
    external_auth_pb2_grpc.add_AuthorizationServicer_to_server(_FakeAuthorization(mint), server)
    session_service_pb2_grpc.add_SessionServiceServicer_to_server(_FakeSessions(mint), server)
    revocation_service_pb2_grpc.add_RevocationServiceServicer_to_server(_FakeRevocations(mint), server)
    audit_service_pb2_grpc.add_AuditServiceServicer_to_server(_FakeAudit(mint), server)
    api_key_scope_service_pb2_grpc.add_ApiKeyScopeServiceServicer_to_server(_FakeKeyScopes(mint), server)
    port = server.add_secure_port("127.0.0.1:0", identities.identity("auth_svc").server_credentials())
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """Return the call metadata that carries a token."""
    return (("authorization", f"Bearer {token}"),)
