"""Envoy's Authorization service: keys, signatures and device certificates become access tokens."""

from math import ceil
from typing import Any
from urllib.parse import unquote

import structlog
from google.protobuf import json_format, struct_pb2
from google.rpc import code_pb2, status_pb2

from auth_svc import device_credentials
from auth_svc.certificate_exchange import CertificateExchange
from auth_svc.key_exchange import KeyExchange
from auth_svc.signed_requests import SCHEME, SignedRequest, SignedRequests
from envoy_api import external_auth_pb2 as pb
from envoy_api import external_auth_pb2_grpc
from meshkit import audit, status
from meshkit.caller_address import ADDRESS_HEADER
from meshkit.callers import GATEWAY, current_caller
from meshkit.errors import DomainError, PermissionDenied, ResourceExhausted, Unauthenticated
from meshkit.route_context import STREAM

_log = structlog.get_logger()
_SCHEME = "Bearer "
_CHALLENGE = ("www-authenticate", 'Bearer error="invalid_token"')
_STATUS = {Unauthenticated: 401, PermissionDenied: 403, ResourceExhausted: 429}


class AuthorizationServicer(external_auth_pb2_grpc.AuthorizationServicer):
    """Serves envoy.service.auth.v3.Authorization: for requests with API keys, signed ones, and devices'.

    A key is a secret and proves itself, as a signature does. A certificate is none: that its holder has
    its key only Envoy knows, and only Envoy is believed.

    Args:
        key_exchange: the rules for keys.
        signed_requests: the rules for signatures.
        certificate_exchange: the rules for certificates.
    """

    def __init__(
        self,
        *,
        key_exchange: KeyExchange,
        signed_requests: SignedRequests,
        certificate_exchange: CertificateExchange,
    ) -> None:
        self._key_exchange = key_exchange
        self._signed_requests = signed_requests
        self._certificate_exchange = certificate_exchange

    async def Check(self, request: pb.CheckRequest, context: Any) -> pb.CheckResponse:
        """Replace the credential by a token, or refuse the request."""
        certificate = request.attributes.source.certificate
        http = request.attributes.request.http
        try:
            if certificate:
                _require_gateway()
                token = await self._certificate_exchange.exchange(unquote(certificate))
            else:
                token = await self._of_header(request)
        except (Unauthenticated, PermissionDenied, ResourceExhausted) as error:
            _log.info("credential refused", path=http.path.partition("?")[0], detail=error.message)
            return _whose(_denied(error))
        return pb.CheckResponse(
            status=status_pb2.Status(code=code_pb2.OK),
            ok_response=pb.OkHttpResponse(headers=[_header("authorization", _SCHEME + token)]),
        )

    async def _of_header(self, request: pb.CheckRequest) -> str:
        http = request.attributes.request.http
        authorization, address = http.headers.get("authorization", ""), http.headers.get(ADDRESS_HEADER, "")
        if not authorization.startswith(f"{SCHEME} "):
            return await self._key_exchange.exchange(authorization.removeprefix(_SCHEME), address=address)
        return await self._signed_requests.exchange(
            SignedRequest(
                authorization,
                http.method,
                http.path,
                http.raw_body,
                address,
                is_stream=STREAM in request.attributes.context_extensions,
            )
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


def _whose(denied: pb.CheckResponse) -> pb.CheckResponse:
    """Return a refusal that tells the gateway whose credential it is, for the audit, where that is known."""
    tenant, principal = audit.concerned()
    if not tenant:
        return denied
    told = pb.CheckResponse()
    told.CopyFrom(denied)
    told.dynamic_metadata.update({"tenant": tenant, "principal": principal})
    return told


def _denied(refusal: DomainError) -> pb.CheckResponse:
    """Return the refusal as JSON; Envoy itself puts it into the form of gRPC for gRPC callers."""
    told = status.to_status(refusal)
    body = json_format.MessageToJson(told, indent=None, always_print_fields_with_no_presence=True)
    headers = [_header("content-type", "application/json")]
    if isinstance(refusal, Unauthenticated):
        headers.append(_header(*_CHALLENGE))
    if refusal.retry_after_s is not None:
        headers.append(_header("retry-after", str(ceil(refusal.retry_after_s))))
    known = struct_pb2.Struct()
    known.update({"reason": status.reason_name(refusal.reason)})
    return pb.CheckResponse(
        status=status_pb2.Status(code=told.code),
        denied_response=pb.DeniedHttpResponse(
            status=pb.HttpStatus(code=_STATUS[type(refusal)]),
            headers=headers,
            body=body,
        ),
        # By which the gateway tells refusals of one HTTP status apart.
        dynamic_metadata=known,
    )
