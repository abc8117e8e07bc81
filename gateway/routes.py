"""Envoy routes and access rules that follow from the contract."""

import re

from gateway import Config, transcoder
from gateway.clusters import NOWHERE, unchecked
from gateway.contract import Contract, HttpBinding, Rpc
from gateway.settings import Upstream
from meshkit import route_context
from meshkit.config import MAX_MESSAGE_BYTES, MAX_STREAM_LIFETIME_SECONDS

_UPSTREAM_OF_PACKAGE = {
    "twinmesh.auth.v1": Upstream.AUTH.value,
    "twinmesh.asset.v1": Upstream.ASSET.value,
    "twinmesh.ingest.v1": Upstream.INGEST.value,
    "twinmesh.twin.v1": Upstream.TWIN.value,
    # Tells which part is away, so it must be asked even then.
    "twinmesh.mesh.v1": unchecked(Upstream.AUTH),
}
# One service describes the whole contract; it too may be asked while it is not ready.
_REFLECTION_UPSTREAM = unchecked(Upstream.ASSET)
_INNER_RPCS = ("/twinmesh.auth.v1.SessionService/GetJwks", "/twinmesh.mesh.v1.HealthService/GetReadiness")

# Before each message: whether it is compressed, and its length.
_MESSAGE_PREFIX_BYTES = 5
_UNARY_LIMIT = {"max_stream_duration": "30s", "grpc_timeout_header_max": "300s"}
# 0s: no limit but the caller's own grpc-timeout.
_STREAM_LIMIT = {"max_stream_duration": "0s", "grpc_timeout_header_max": "0s"}
# Streams that are told to end at their longest life do so before they are cut.
_STREAM_IDLE = f"{MAX_STREAM_LIFETIME_SECONDS + 300}s"
# A file is made of a snapshot that the database holds for so long at the most, and of what its caller takes:
# one who takes nothing must not keep others from theirs.
_FILE_LIMIT = {"max_stream_duration": "960s", "grpc_timeout_header_max": "960s"}
_FILE_IDLE = "60s"
_PREVIOUS_HOSTS = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
# The request did not reach a handler, so any rpc may be sent again …
_SAFE_FOR_ALL = "connect-failure,refused-stream,reset-before-request"
# … and what changes nothing also after it did.
_SAFE_WITHOUT_SIDE_EFFECTS = f"{_SAFE_FOR_ALL},reset"
_BUFFER = "envoy.filters.http.buffer"
# Switches the filter on as the listener configures it.
_BUFFERED_JSON = {_BUFFER: {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}}}


def _buffered(most_bytes: int) -> Config:
    return {
        _BUFFER: {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
            "buffer": {"max_request_bytes": most_bytes},
        }
    }


# A service is sent what is there as a whole: of callers that stop in the midst of thousands of messages it
# would hold all that came, while the gateway counts its memory and ends those that take most of it.
_BUFFERED_MESSAGE = _buffered(MAX_MESSAGE_BYTES + _MESSAGE_PREFIX_BYTES)
# Anybody may send these, so that there is little to keep of each.
_BUFFERED_PUBLIC = _buffered(64 * 1024)
SIGNED_REQUESTS = "envoy.filters.http.ext_authz.signed_requests"
_PER_ROUTE = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute"
_EXT_AUTHZ_OFF = {
    name: {"@type": _PER_ROUTE, "disabled": True}
    for name in ("envoy.filters.http.ext_authz", SIGNED_REQUESTS)
}
# A stream's body has no end to wait for, so auth_svc is asked at once, to refuse it in words.
_SIGNED_STREAM = {
    SIGNED_REQUESTS: {
        "@type": _PER_ROUTE,
        "check_settings": {
            "context_extensions": {route_context.STREAM: "true"},
            "disable_request_body_buffering": True,
        },
    }
}


def edge_routes(contract: Contract, *, events: Config) -> list[Config]:
    """Return the routes of the edge listener.

    A JSON request has a route twice: one by its own path, which decides what the filters
    do, and, once the transcoder has rewritten it, the one of its rpc.

    Args:
        contract: what is reachable.
        events: the transcoder's configuration for rpcs that answer by a stream.
    """
    # A JSON request stays here until the transcoder has found its rpc. The CORS filter wants a route that
    # leads somewhere; this one leads to a cluster of no endpoints.
    waiting = {"route": {"cluster": NOWHERE}}
    made: list[Config] = []
    for rpc in contract.rpcs:
        whole = _BUFFERED_PUBLIC if rpc.is_public else _BUFFERED_MESSAGE
        of_grpc = _filters(({} if rpc.client_streaming else whole) | _authorization(rpc))
        made.append({"match": {"path": rpc.path}, "route": _action(rpc), **of_grpc})
        own = _authorization(rpc) | ({transcoder.FILTER: events} if rpc in contract.streamed else {})
        if own:
            of_json = _filters((_BUFFERED_PUBLIC if rpc.is_public else _BUFFERED_JSON) | own)
            made += [{"match": match, **waiting, **of_json} for match in _json_matches(rpc)]
    for prefix in ("/grpc.reflection.v1.", "/grpc.reflection.v1alpha."):
        made.append(
            {
                "match": {"prefix": prefix},
                "route": _stream_action(_REFLECTION_UPSTREAM),
                **_filters(_SIGNED_STREAM),
            }
        )
    is_grpc = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
    made.append({"match": {"prefix": "/", "headers": [is_grpc]}, "direct_response": {"status": 404}})
    made.append({"match": {"prefix": "/"}, **waiting, **_filters(_BUFFERED_JSON)})
    return made


def jwks_routes(contract: Contract) -> list[Config]:
    """Return the routes of the inner listener: auth_svc's keys, and whether the mesh is ready."""
    return [
        {"match": match, "route": _unary_action(unchecked(Upstream.AUTH), rpc)}
        for rpc in map(contract.rpc, _INNER_RPCS)
        for match in [{"path": rpc.path}, *_json_matches(rpc)]
    ]


def jwt_rules(contract: Contract) -> list[Config]:
    """Return who needs a token: everybody, but for the public rpcs in both of their forms."""
    rules: list[Config] = []
    for rpc in contract.public:
        rules += [{"match": match} for match in [{"path": rpc.path}, *_json_matches(rpc)]]
    rules.append({"match": {"prefix": "/"}, "requires": {"provider_name": "twinmesh"}})
    return rules


def _filters(config: Config) -> Config:
    return {"typed_per_filter_config": config} if config else {}


def _authorization(rpc: Rpc) -> Config:
    # A stale key must not keep its owner from logging in.
    if rpc.is_public:
        return _EXT_AUTHZ_OFF
    return _SIGNED_STREAM if rpc.streaming else {}


def _action(rpc: Rpc) -> Config:
    upstream = _UPSTREAM_OF_PACKAGE[rpc.package]
    if rpc.answers_files:
        return _stream_action(upstream) | {"max_stream_duration": _FILE_LIMIT, "idle_timeout": _FILE_IDLE}
    return _stream_action(upstream) if rpc.streaming else _unary_action(upstream, rpc)


def _unary_action(upstream: str, rpc: Rpc) -> Config:
    return {
        "cluster": upstream,
        "max_stream_duration": _UNARY_LIMIT,
        "retry_policy": _retries(_SAFE_WITHOUT_SIDE_EFFECTS if rpc.idempotent else _SAFE_FOR_ALL),
    }


def _stream_action(upstream: str) -> Config:
    return {
        "cluster": upstream,
        "max_stream_duration": _STREAM_LIMIT,
        "idle_timeout": _STREAM_IDLE,
        # Until the first answer Envoy keeps what it would have to send again: an opening, mostly.
        "retry_policy": _retries(_SAFE_FOR_ALL),
    }


def _retries(on: str) -> Config:
    return {
        "retry_on": on,
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {"@type": _PREVIOUS_HOSTS},
            }
        ],
        # Each picks at random: of two processes with one away, three left one opening in 500 with it.
        "host_selection_retry_max_attempts": 10,
    }


def _json_matches(rpc: Rpc) -> list[Config]:
    return [_json_match(binding) for binding in rpc.bindings]


def _json_match(binding: HttpBinding) -> Config:
    method = [{"name": ":method", "string_match": {"exact": binding.method}}]
    if "{" not in binding.template:
        return {"path": binding.template, "headers": method}
    literals = re.split(r"\{[^}]*\}", binding.template)
    regex = "[^/]+".join(re.escape(literal) for literal in literals)
    return {"safe_regex": {"regex": regex}, "headers": method}
