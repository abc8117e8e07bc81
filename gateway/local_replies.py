"""Envoy's own answers in the one shape of errors: google.rpc.Status with an ErrorInfo.

Envoy takes the first mapper that fits. Requests that came as gRPC or gRPC-Web get the
status as headers; all others, transcoded or not, get it as a JSON body.
"""

import base64
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

import grpc
from google.protobuf import any_pb2, json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from gateway import Config
from gateway.settings import Upstream
from meshkit.status import ERROR_DOMAIN

# Stands in for Envoy's own words, which only JSON answers can carry.
_ENVOYS_WORDS = "%LOCAL_REPLY_BODY%"
# What grpc-message carries as it stands; `%` starts an escape there, and a command in Envoy.
_GRPC_MESSAGE_PLAIN = string.ascii_letters + string.digits + string.punctuation.replace("%", "") + " "
# In Envoy's access log: answered, but by no service.
REFUSED_HERE = (
    "response.code > 0 && response.code_details != 'via_upstream'"
    " && !(request.method == 'OPTIONS' && response.code == 200)"
    " && (!has(upstream.address)"
    " || response.code_details.startsWith('upstream_reset_before_response_started'))"
)
_CEL = "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    """One kind of refusal.

    Attributes:
        when: conditions, all of which must hold.
        code: the status code that is told.
        grpc_code: the same for gRPC, where it differs.
        envoys_words: put Envoy's own text after the message in JSON.
        http_status: replaces Envoy's status.
    """

    when: tuple[Config, ...]
    code: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry: bool = False
    grpc_code: grpc.StatusCode | None = None
    envoys_words: bool = False
    http_status: int | None = None

    def status(self, code: grpc.StatusCode, message: str) -> status_pb2.Status:
        number: int = code.value[0]
        status = status_pb2.Status(code=number, message=message)
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=ERROR_DOMAIN, metadata=self.metadata)
        status.details.append(_packed(info))
        if self.retry:
            status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay={"seconds": 1})))
        return status


def mappers(*, for_devices: bool = False) -> list[Config]:
    """Return the mappers of `local_reply_config`, most particular first.

    Args:
        for_devices: of the listener where certificates are what auth_svc refuses.
    """
    replies = [*([_CERTIFICATE_REFUSED] if for_devices else []), *_replies()]
    return [_grpc_mapper(reply) for reply in replies] + [_json_mapper(reply) for reply in replies]


def _replies() -> Iterator[_Reply]:
    yield from _unauthenticated()
    yield from _unavailable()
    # Credentials that auth_svc finds good and refuses all the same.
    for reason, message in (
        ("TENANT_SUSPENDED", "the tenant is suspended; the operators of the installation can resume it"),
        ("ADDRESS_NOT_ALLOWED", "the API key may not be used from this address"),
    ):
        yield _Reply(
            when=(_http_status("EQ", 403), _refused_by_auth(reason)),
            code=grpc.StatusCode.PERMISSION_DENIED,
            reason=reason,
            message=message,
        )
    yield _Reply(
        when=(_http_status("EQ", 429), _refused_by_auth("LOGIN_LIMITED")),
        code=grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason="LOGIN_LIMITED",
        message="too many wrong API keys came from this address; wait as long as retry-after says",
    )
    yield _Reply(
        when=(_http_status("EQ", 404),),
        code=grpc.StatusCode.NOT_FOUND,
        grpc_code=grpc.StatusCode.UNIMPLEMENTED,
        reason="ROUTE_NOT_FOUND",
        message="no such method and path; see the API guide",
    )
    yield _Reply(
        when=(_http_status("EQ", 413),),
        code=grpc.StatusCode.INVALID_ARGUMENT,
        reason="BODY_TOO_LARGE",
        message="the body is larger than the gateway takes; send it in parts",
    )
    # The latter: within the limits as sent, but not with the token that replaces an API key.
    for too_large in (_http_status("EQ", 431), _details("ext_authz_invalid")):
        yield _Reply(
            when=(too_large,),
            code=grpc.StatusCode.INVALID_ARGUMENT,
            reason="BODY_TOO_LARGE",
            message="the path and headers are larger than the gateway takes",
            http_status=431,
        )
    yield _Reply(
        when=(_http_status("EQ", 429),),
        code=grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason="RATE_LIMITED",
        message="the gateway's request rate is reached; retry after a second",
        retry=True,
    )
    for status in (408, 504):
        yield _Reply(
            when=(_http_status("EQ", status),),
            code=grpc.StatusCode.DEADLINE_EXCEEDED,
            reason="DEADLINE_EXCEEDED",
            message="the time allowed for the request ran out",
            http_status=504,
        )
    yield _Reply(
        when=(_http_status("LE", 499),),
        code=grpc.StatusCode.INVALID_ARGUMENT,
        reason="INVALID_FIELD",
        message="the request cannot be read",
        envoys_words=True,
    )
    yield _Reply(
        when=(_http_status("GE", 500),),
        code=grpc.StatusCode.INTERNAL,
        reason="INTERNAL",
        message="internal error in the gateway",
    )


def _unauthenticated() -> Iterator[_Reply]:
    unauthorized = _http_status("EQ", 401)
    yield _Reply(
        when=(unauthorized, _details("Jwks_remote_fetch_is_failed")),
        http_status=503,
        **_dependency(Upstream.AUTH),
    )
    yield _Reply(
        when=(unauthorized, _header("authorization", {"present_match": False})),
        code=grpc.StatusCode.UNAUTHENTICATED,
        reason="CREDENTIAL_MISSING",
        message="send a credential: authorization: Bearer <access token or API key>",
    )
    yield _Reply(
        when=(unauthorized, _header("authorization", {"string_match": {"prefix": "Bearer tmk_"}})),
        code=grpc.StatusCode.UNAUTHENTICATED,
        reason="API_KEY_INVALID",
        message="the API key is unknown, expired or revoked",
    )
    for reason, message in (
        (
            "SIGNATURE_DATE_INVALID",
            "the date of the signed request lies more than five minutes from the server's",
        ),
        ("SIGNATURE_REPLAYED", "a request with this signature has come before; sign anew, with another date"),
        (
            "SIGNATURE_NOT_FOR_STREAMS",
            "a stream has no whole body that could be signed; send the API key or an access token",
        ),
        (
            "SIGNATURE_INVALID",
            "the signature does not fit the request, or its key is unknown, expired or revoked",
        ),
    ):
        yield _Reply(
            when=(unauthorized, _refused_by_auth(reason)),
            code=grpc.StatusCode.UNAUTHENTICATED,
            reason=reason,
            message=message,
        )
    yield _Reply(
        when=(unauthorized, _details("Jwt_is_expired")),
        code=grpc.StatusCode.UNAUTHENTICATED,
        reason="TOKEN_INVALID",
        message="the token has expired; log in or refresh",
    )
    # Of a foreign audience Envoy says 403.
    for refused in (unauthorized, _details("jwt_authn_access_denied")):
        yield _Reply(
            when=(refused,),
            code=grpc.StatusCode.UNAUTHENTICATED,
            reason="TOKEN_INVALID",
            message="the token is malformed, forged or not one of ours",
            http_status=401,
        )


def _unavailable() -> Iterator[_Reply]:
    away = (_http_status("GE", 502), _http_status("LE", 503))
    yield _Reply(when=(*away, _details("ext_authz_error")), **_dependency(Upstream.AUTH))
    for upstream in Upstream:
        of_cluster = _cel(f"xds.cluster_name.startsWith('{upstream}')")
        yield _Reply(when=(*away, of_cluster), **_dependency(upstream))
    yield _Reply(when=away, **_dependency("gateway"))


def _dependency(name: str) -> Config:
    return {
        "code": grpc.StatusCode.UNAVAILABLE,
        "reason": "DEPENDENCY_UNAVAILABLE",
        "message": f"{name} is not available; retry",
        "metadata": {"dependency": str(name)},
        "retry": True,
    }


def _grpc_mapper(reply: _Reply) -> Config:
    status = reply.status(reply.grpc_code or reply.code, reply.message)
    details = base64.b64encode(status.SerializeToString(deterministic=True)).rstrip(b"=").decode()
    return {
        "filter": _all(*_CAME_AS_GRPC, *reply.when),
        # A response of trailers only. Envoy makes one of itself for gRPC, not for gRPC-Web.
        "status_code": 200,
        "body_format_override": {"text_format_source": {"inline_string": ""}},
        "headers_to_add": [
            _set("content-type", "application/grpc"),
            _set("grpc-status", str(status.code)),
            _set("grpc-message", quote(status.message, safe=_GRPC_MESSAGE_PLAIN)),
            _set("grpc-status-details-bin", details),
        ],
    }


def _json_mapper(reply: _Reply) -> Config:
    message = f"{reply.message}: {_ENVOYS_WORDS}" if reply.envoys_words else reply.message
    body = json_format.MessageToDict(
        reply.status(reply.code, message), always_print_fields_with_no_presence=True
    )
    mapper: Config = {"filter": _all(*reply.when), "body_format_override": {"json_format": body}}
    if reply.http_status is not None:
        mapper["status_code"] = reply.http_status
    return mapper


def _set(name: str, value: str) -> Config:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _all(*conditions: Config) -> Config:
    return conditions[0] if len(conditions) == 1 else {"and_filter": {"filters": list(conditions)}}


def _http_status(comparison: str, status: int) -> Config:
    value = {"default_value": status, "runtime_key": "gateway.local_reply"}
    return {"status_code_filter": {"comparison": {"op": comparison, "value": value}}}


def _header(name: str, match: Config) -> Config:
    return {"header_filter": {"header": {"name": name, **match}}}


def _details(part: str) -> Config:
    return _cel(f"response.code_details.contains('{part}')")


def _refused_by_auth(reason: str) -> Config:
    matcher = {
        "filter": "envoy.filters.http.ext_authz",
        "path": [{"key": "reason"}],
        "value": {"string_match": {"exact": reason}},
    }
    return {"metadata_filter": {"matcher": matcher, "match_if_key_not_found": False}}


def _cel(expression: str) -> Config:
    config = {"@type": _CEL, "expression": expression}
    return {
        "extension_filter": {"name": "envoy.access_loggers.extension_filters.cel", "typed_config": config}
    }


# The transcoder makes JSON requests look like gRPC, but keeps their path beside.
_CAME_AS_GRPC = (
    _header("content-type", {"string_match": {"prefix": "application/grpc"}}),
    _header("x-envoy-original-path", {"present_match": False}),
)
_CERTIFICATE_REFUSED = _Reply(
    when=(_http_status("EQ", 401), _details("ext_authz_denied")),
    code=grpc.StatusCode.UNAUTHENTICATED,
    reason="CERTIFICATE_INVALID",
    message="the device certificate is unknown, expired or revoked",
)
