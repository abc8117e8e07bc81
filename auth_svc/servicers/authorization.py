"""Envoy's Authorization service: API keys become access tokens on their way in."""

import structlog
from google.protobuf import json_format
from google.rpc import code_pb2, status_pb2

from auth_svc.key_exchange import KeyExchange, refused
from envoy_api import external_auth_pb2 as pb
from envoy_api import external_auth_pb2_grpc
from meshkit import status
from meshkit.errors import Unauthenticated

_log = structlog.get_logger()
_SCHEME = "Bearer "
_UNAUTHORIZED = 401


class AuthorizationServicer(external_auth_pb2_grpc.AuthorizationServicer):
    """Serves envoy.service.auth.v3.Authorization for requests that carry an API key.

    Args:
        key_exchange: the rules.
    """

    def __init__(self, *, key_exchange: KeyExchange) -> None:
        self._key_exchange = key_exchange
        self._denied = _denied(status.to_status(refused()))

    async def Check(self, request: pb.CheckRequest, context: object) -> pb.CheckResponse:
        """Replace the key by a token, or refuse the request."""
        http = request.attributes.request.http
        try:
            token = await self._key_exchange.exchange(
                http.headers.get("authorization", "").removeprefix(_SCHEME)
            )
        except Unauthenticated as error:
            _log.info("API key refused", path=http.path.partition("?")[0], detail=error.message)
            return self._denied
        return pb.CheckResponse(
            status=status_pb2.Status(code=code_pb2.OK),
            ok_response=pb.OkHttpResponse(headers=[_header("authorization", _SCHEME + token)]),
        )


def _header(key: str, value: str) -> pb.HeaderValueOption:
    return pb.HeaderValueOption(
        header=pb.HeaderValue(key=key, value=value),
        append_action=pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def _denied(refusal: status_pb2.Status) -> pb.CheckResponse:
    """Return the refusal as JSON; Envoy itself puts it into the form of gRPC for gRPC callers."""
    body = json_format.MessageToJson(refusal, indent=None, always_print_fields_with_no_presence=True)
    return pb.CheckResponse(
        status=status_pb2.Status(code=code_pb2.UNAUTHENTICATED),
        denied_response=pb.DeniedHttpResponse(
            status=pb.HttpStatus(code=_UNAUTHORIZED),
            headers=[
                _header("content-type", "application/json"),
                _header("www-authenticate", 'Bearer error="invalid_token"'),
            ],
            body=body,
        ),
    )
