"""SessionService."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from auth_svc.login_limits import Guess, network
from auth_svc.sessions import Sessions, TokenPair
from meshkit import audit
from meshkit.caller_address import caller_address
from meshkit.identity import PrincipalKind, current_principal
from twinmesh.auth.v1 import session_service_pb2 as pb
from twinmesh.auth.v1 import session_service_pb2_grpc

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

_Answer = TypeVar("_Answer", pb.LoginResponse, pb.RefreshResponse)


class SessionServicer(session_service_pb2_grpc.SessionServiceServicer):
    """Serves twinmesh.auth.v1.SessionService.

    Args:
        sessions: the rules.
        jwks: answers the published keys.
    """

    def __init__(
        self, *, sessions: Sessions, jwks: Callable[[], Awaitable[Sequence[Mapping[str, str]]]]
    ) -> None:
        self._sessions = sessions
        self._jwks = jwks

    async def Login(self, request: pb.LoginRequest, context: Context) -> pb.LoginResponse:
        """Exchange a password for tokens."""
        audit.concerns(request.tenant, f"{PrincipalKind.USER}:{request.username}")
        guess = Guess(request.tenant, request.username, network(caller_address(context)))
        pair = await self._sessions.login(guess, request.password)
        answer = _answer(pb.LoginResponse, pair)
        answer.password_change_required = pair.password_change_required
        return answer

    async def Refresh(self, request: pb.RefreshRequest, context: Context) -> pb.RefreshResponse:
        """Trade a refresh token for the next pair."""
        pair = await self._sessions.refresh(request.refresh_token, address=network(caller_address(context)))
        return _answer(pb.RefreshResponse, pair)

    async def Logout(self, request: pb.LogoutRequest, context: object) -> pb.LogoutResponse:
        """End the caller's session."""
        await self._sessions.logout(current_principal())
        return pb.LogoutResponse()

    async def GetMe(self, request: pb.GetMeRequest, context: object) -> pb.GetMeResponse:
        """Tell who the caller is."""
        principal = current_principal()
        answer = pb.GetMeResponse(
            tenant=principal.tenant,
            subject=principal.subject,
            kind=principal.kind,
            role=principal.role,
            permissions=sorted(principal.permissions),
            credential_id=principal.credential_id,
        )
        if principal.credential_expires != float("inf"):
            answer.expire_time.FromSeconds(int(principal.credential_expires))
        return answer

    async def GetJwks(self, request: pb.GetJwksRequest, context: object) -> pb.GetJwksResponse:
        """Give the public keys."""
        return pb.GetJwksResponse(keys=[pb.Jwk(**key) for key in await self._jwks()])


def _answer(kind: type[_Answer], pair: TokenPair) -> _Answer:
    refresh_expires = Timestamp()
    refresh_expires.FromMicroseconds(pair.refresh_expire_us)
    return kind(
        access_token=pair.access_token,
        token_type="Bearer",  # noqa: S106 - a scheme, no secret
        expires_in=Duration(seconds=pair.access_life_s),
        refresh_token=pair.refresh_token,
        refresh_expire_time=refresh_expires,
    )
