"""TokenService."""

from auth_svc.token_exchange import TokenExchange
from twinmesh.auth.v1 import token_service_pb2 as pb
from twinmesh.auth.v1 import token_service_pb2_grpc

_ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a type


class TokenServicer(token_service_pb2_grpc.TokenServiceServicer):
    """Serves twinmesh.auth.v1.TokenService.

    Args:
        token_exchange: the rules.
    """

    def __init__(self, *, token_exchange: TokenExchange) -> None:
        self._token_exchange = token_exchange

    async def ExchangeToken(
        self, request: pb.ExchangeTokenRequest, context: object
    ) -> pb.ExchangeTokenResponse:
        """Exchange a JWT of an issuer for an access token."""
        exchanged = await self._token_exchange.exchange(request.subject_token)
        return pb.ExchangeTokenResponse(
            access_token=exchanged.access_token,
            issued_token_type=_ACCESS_TOKEN,
            token_type="Bearer",  # noqa: S106 - a scheme, no secret
            expires_in=exchanged.life_s,
        )
