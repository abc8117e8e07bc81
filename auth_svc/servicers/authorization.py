"""Envoy's Authorization service: API keys and device certificates become access tokens on their way in."""

from typing import Any
from urllib.parse import unquote

import structlog
from google.protobuf import json_format, struct_pb2
from google.rpc import code_pb2, status_pb2

from auth_svc import device_credentials
from auth_svc import key_exchange as key_exchange_rules
from auth_svc.certificate_exchange import CertificateExchange
from auth_svc.key_exchange import KeyExchange
from envoy_api import external_auth_pb2 as pb
from envoy_api import external_auth_pb2_grpc
from meshkit import status
from meshkit.caller_address import ADDRESS_HEADER
from meshkit.callers import GATEWAY, current_caller
from meshkit.errors import PermissionDenied, Unauthenticated

_log = structlog.get_logger()
_SCHEME = "Bearer "
_CHALLENGE = ("www-authenticate", 'Bearer error="invalid_token"')
_UNAUTHORIZED, _FORBIDDEN = 401, 403


class AuthorizationServicer(external_auth_pb2_grpc.AuthorizationServicer):
    """Serves envoy.service.auth.v3.Authorization for requests that carry an API key or come from a device.

    A key is a secret and proves itself. A certificate is none: that its holder has its key only Envoy
    knows, and only Envoy is believed.

    Args:
        key_exchange: the rules for keys.
        certificate_exchange: the rules for certificates.
    """

    def __init__(self, *, key_exchange: KeyExchange, certificate_exchange: CertificateExchange) -> None:
        self._key_exchange = key_exchange
        self._certificate_exchange = certificate_exchange
        self._key_denied = _denied(key_exchange_rules.refused())
        self._certificate_denied = _denied(device_credentials.refused())

    async def Check(self, request: pb.CheckRequest, context: Any) -> pb.CheckResponse:
        """Replace the credential by a token, or refuse the request."""
        certificate = request.attributes.source.certificate
        http = request.attributes.request.http
        try:
            if certificate:
                _require_gateway()
                token = await self._certificate_exchange.exchange(unquote(certificate))
            else:
                key = http.headers.get("authorization", "").removeprefix(_SCHEME)
                token = await self._key_exchange.exchange(key, address=http.headers.get(ADDRESS_HEADER, ""))
        except Unauthenticated as error:
            _log.info("credential refused", path=http.path.partition("?")[0], detail=error.message)
            return self._certificate_denied if certificate else self._key_denied
        except PermissionDenied as error:
            _log.info("credential refused", path=http.path.partition("?")[0], detail=error.message)
            return _denied(error)
        return pb.CheckResponse(
            status=status_pb2.Status(code=code_pb2.OK),
            ok_response=pb.OkHttpResponse(headers=[_header("authorization", _SCHEME + token)]),
        )


def _require_gateway() -> None:
    caller = current_caller()
    if caller != GATEWAY:
        _log.warning("somebody who is not the gateway shows a device certificate", caller=caller)
        raise device_credentials.refused()


def _header(key: str, value: str) -> pb.HeaderValueOption:
    return pb.HeaderValueOption(
        header=pb.HeaderValue(key=key, value=value),
        append_action=pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def _denied(refusal: Unauthenticated | PermissionDenied) -> pb.CheckResponse:
    """Return the refusal as JSON; Envoy itself puts it into the form of gRPC for gRPC callers."""
    told = status.to_status(refusal)
    body = json_format.MessageToJson(told, indent=None, always_print_fields_with_no_presence=True)
    is_unknown = isinstance(refusal, Unauthenticated)
    known = struct_pb2.Struct()
    known.update({"reason": status.reason_name(refusal.reason)})
    return pb.CheckResponse(
        status=status_pb2.Status(code=told.code),
        denied_response=pb.DeniedHttpResponse(
            status=pb.HttpStatus(code=_UNAUTHORIZED if is_unknown else _FORBIDDEN),
            headers=[
                _header("content-type", "application/json"),
                *([_header(*_CHALLENGE)] if is_unknown else []),
            ],
            body=body,
        ),
        # By which the gateway tells refusals of one HTTP status apart.
        dynamic_metadata=known,
    )
