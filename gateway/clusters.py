"""Envoy clusters: where requests go, and how Envoy knows who can take them."""

from collections.abc import Sequence
from ipaddress import ip_address

from gateway import Config, mesh_tls
from gateway.settings import Endpoint, GatewaySettings, Upstream

JWKS = "jwks"
OTLP = "otlp"
NOWHERE = "nowhere"

_HTTP = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
# Envoy's own limit of 1,024 requests per cluster is passed by a fleet of long streams.
_CIRCUIT_BREAKERS = {
    "thresholds": [
        {
            "max_connections": 20_000,
            "max_pending_requests": 20_000,
            "max_requests": 100_000,
            "max_retries": 200,
            "track_remaining": True,
        }
    ]
}
_HTTP2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": _HTTP,
        "explicit_http_config": {
            "http2_protocol_options": {
                "max_concurrent_streams": 1000,
                "initial_stream_window_size": 1024 * 1024,
                "initial_connection_window_size": 16 * 1024 * 1024,
                "connection_keepalive": {"interval": "30s", "timeout": "10s"},
            }
        },
    }
}
# Quick to believe that a service is back, slower to believe that it is away, since an
# event loop under load may answer late. Streams live on when a check fails.
_HEALTH_CHECK = {
    "interval": "1s",
    "no_traffic_interval": "1s",
    "no_traffic_healthy_interval": "1s",
    "unhealthy_interval": "0.5s",
    "timeout": "2s",
    "unhealthy_threshold": 2,
    "healthy_threshold": 1,
    "grpc_health_check": {},
}


def unchecked(upstream: Upstream) -> str:
    """Return the cluster of a service's processes whatever their health.

    For what must answer while the service itself is not ready: readiness, keys, key checks.
    """
    return f"{upstream}_unchecked"


def clusters(settings: GatewaySettings) -> list[Config]:
    """Return every cluster of the gateway."""
    made = [_checked(upstream, settings) for upstream in Upstream]
    made += [
        _service(unchecked(upstream), upstream, settings) for upstream in (Upstream.AUTH, Upstream.ASSET)
    ]
    made.append(_jwks(settings))
    made.append(_grpc(NOWHERE, []))
    made.append(_grpc(OTLP, [] if settings.otlp is None else [settings.otlp]))
    return made


def _grpc(name: str, endpoints: Sequence[Endpoint]) -> Config:
    return {
        "name": name,
        **_discovery(endpoints),
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": 1024 * 1024,
        "typed_extension_protocol_options": _HTTP2,
        "circuit_breakers": _CIRCUIT_BREAKERS,
        "load_assignment": _load_assignment(name, endpoints),
    }


def _service(name: str, upstream: Upstream, settings: GatewaySettings) -> Config:
    return {
        **_grpc(name, settings.upstreams[upstream]),
        "transport_socket": mesh_tls.transport_socket(upstream, settings.identity),
    }


def _checked(upstream: Upstream, settings: GatewaySettings) -> Config:
    return {
        **_service(upstream.value, upstream, settings),
        "lb_policy": "LEAST_REQUEST",
        # No healthy process means 503 at once; Envoy would try the unhealthy ones otherwise.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "health_checks": [_HEALTH_CHECK],
    }


def _discovery(endpoints: Sequence[Endpoint]) -> Config:
    if all(_is_ip(endpoint.host) for endpoint in endpoints):
        return {"type": "STATIC"}
    return {
        "type": "STRICT_DNS",
        "dns_refresh_rate": "5s",
        "dns_failure_refresh_rate": {"base_interval": "0.5s", "max_interval": "2s"},
        "dns_lookup_family": "ALL",
    }


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _jwks(settings: GatewaySettings) -> Config:
    endpoint = Endpoint("127.0.0.1", settings.jwks_port)
    return {
        "name": JWKS,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": _load_assignment(JWKS, [endpoint]),
    }


def _load_assignment(cluster: str, endpoints: Sequence[Endpoint]) -> Config:
    return {
        "cluster_name": cluster,
        "endpoints": [{"lb_endpoints": [_lb_endpoint(endpoint) for endpoint in endpoints]}],
    }


def _lb_endpoint(endpoint: Endpoint) -> Config:
    address = {"address": endpoint.host, "port_value": endpoint.port}
    return {"endpoint": {"address": {"socket_address": address}}}
