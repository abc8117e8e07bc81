"""TokenService."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from auth_svc.token_exchange import TokenExchange
from meshkit.caller_address import caller_address
from twinmesh.auth.v1 import token_service_pb2 as pb
from twinmesh.auth.v1 import token_service_pb2_grpc

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

_ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a type


class TokenServicer(token_service_pb2_grpc.TokenServiceServicer):
    """Serves twinmesh.auth.v1.TokenService.

    Args:
        token_exchange: the rules.
    """

    def __init__(self, *, token_exchange: TokenExchange) -> None:
        self._token_exchange = token_exchange

    async def ExchangeToken(
        self, request: pb.ExchangeTokenRequest, context: Context
    ) -> pb.ExchangeTokenResponse:
        """Exchange a JWT of an issuer for an access token."""
        exchanged = await self._token_exchange.exchange(
            request.subject_token, address=caller_address(context)
        )
        return pb.ExchangeTokenResponse(
            access_token=exchanged.access_token,
            issued_token_type=_ACCESS_TOKEN,
            token_type="Bearer",  # noqa: S106 - a scheme, no secret
            expires_in=exchanged.life_s,
        )
