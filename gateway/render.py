"""Renders the gateway's Envoy configuration.

As a program it reads its settings from the environment (`GatewayEnvironment`) and fills
a folder with all that Envoy needs, to be mounted at the same path where Envoy runs:

    python -m gateway.render FOLDER
    envoy --config-path FOLDER/envoy.json
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gateway import Config, clusters, devices, local_replies, mesh_tls, routes, tls
from gateway.contract import CONTRACT, read_contract
from gateway.settings import GatewayEnvironment, GatewaySettings, Upstream
from gateway.transcoder import as_events, transcoder
from meshkit.config import MAX_MESSAGE_BYTES

# auth_svc is sent it in a message, in which headers are as well.
_MAX_SIGNED_BODY_BYTES = MAX_MESSAGE_BYTES - 64 * 1024
_TEMPLATE = Path(__file__).with_name("envoy.yaml")
_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
# Identity comes from the verified credential, the address from the connection.
_STRIPPED_HEADERS = (
    "x-tenant",
    "x-tenant-id",
    "x-user",
    "x-user-id",
    "x-principal",
    "x-real-ip",
    "forwarded",
    "x-trace-id",
    # Told apart by local_replies.
    "x-envoy-original-path",
    "x-envoy-original-method",
)
_STRIPPED_PREFIX = {"prefix": "x-forwarded-"}
# The same but x-forwarded-for, which trusted proxies write; RE2 has no look-ahead.
_STRIPPED_BEHIND_PROXIES = {"safe_regex": {"regex": "x-forwarded-([^f].*|f[^o].*|fo[^r].*|for.+|fo?)?"}}
# gRPC takes no others as metadata: its servers fail on the whole call. What begins with : is HTTP's own.
_NO_METADATA = {"safe_regex": {"regex": "[^:a-z0-9.-].*|[^:].*[^a-z0-9.-].*"}}
# A client that resets most of its first 500 streams within a second of opening them loses its connection,
# and no connection has more than so many requests read before others have their turn (CVE-2023-44487).
_RAPID_RESET = {
    "overload.premature_reset_total_stream_count": 500,
    "overload.premature_reset_min_stream_lifetime_seconds": 1,
    "http.max_requests_per_io_cycle": 32,
}


def render(settings: GatewaySettings) -> Config:
    """Return Envoy's bootstrap configuration; reads the template and the contract, nothing else.

    Raises:
        OSError: the descriptor set cannot be read.
        google.protobuf.message.DecodeError: it is no descriptor set.
    """
    contract = read_contract(settings.descriptor_path)
    transcoding = transcoder(settings, contract)
    limits = settings.client_limits
    values = {
        "runtime": _runtime(limits.listener_connections),
        "max_connections": limits.connections,
        "headers_timeout": f"{limits.headers_timeout_s}s",
        "request_timeout": f"{limits.request_timeout_s}s",
        "bind": settings.bind,
        "port": settings.port,
        "admin_port": settings.admin_port,
        "jwks_port": settings.jwks_port,
        "stripped_headers": [
            {
                "remove_on_match": {
                    "key_matcher": _STRIPPED_BEHIND_PROXIES if settings.trusted_hops else _STRIPPED_PREFIX
                }
            },
            {"remove_on_match": {"key_matcher": _NO_METADATA}},
            *({"remove": name} for name in _STRIPPED_HEADERS),
        ],
        # Nobody listens: make trace ids, record nothing.
        "trace_sample_percent": settings.trace_sample_ratio * 100 if settings.otlp else 0,
        "access_log_path": settings.access_log_path,
        "local_reply_mappers": local_replies.mappers(),
        "requests_per_second": settings.requests_per_second,
        "request_burst": settings.requests_per_second * 2,
        "trusted_hops": settings.trusted_hops,
        "auth_cluster": clusters.unchecked(Upstream.AUTH),
        "refused_here": local_replies.REFUSED_HERE,
        "signed_requests": routes.SIGNED_REQUESTS,
        "max_signed_body_bytes": _MAX_SIGNED_BODY_BYTES,
        "jwt_rules": routes.jwt_rules(contract),
        "transcoder": transcoding,
        "max_json_body_bytes": settings.max_json_body_bytes,
        "cors_origins": [{"exact": origin} for origin in settings.cors_origins],
        "routes": routes.edge_routes(contract, events=as_events(transcoding)),
        "jwks_routes": routes.jwks_routes(contract),
        "clusters": clusters.clusters(settings),
    }
    filled: Config = _fill(yaml.safe_load(_TEMPLATE.read_text(encoding="utf-8")), values)
    static = filled["static_resources"]
    if settings.devices is not None:
        static["listeners"].append(devices.listener(static["listeners"][0], settings.devices))
    if settings.tls is not None:
        tls.encrypt(static["listeners"][0], settings.tls)
    return filled


def _runtime(listener_connections: int) -> Config:
    of_listeners = {
        f"envoy.resource_limits.listener.{name}.connection_limit": listener_connections
        for name in ("edge", devices.LISTENER)
    }
    return {"layers": [{"name": "limits", "static_layer": {**_RAPID_RESET, **of_listeners}}]}


def _fill(node: Any, values: Config) -> Any:
    """Replace every `${name}` scalar by its value."""
    if isinstance(node, dict):
        return {key: _fill(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_fill(item, values) for item in node]
    placeholder = _PLACEHOLDER.fullmatch(node) if isinstance(node, str) else None
    return node if placeholder is None else values[placeholder[1]]


def main() -> None:
    """Render into the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m gateway.render", description=__doc__)
    parser.add_argument("folder", type=Path, help="where envoy.json and contract.binpb are written")
    folder: Path = parser.parse_args().folder.absolute()
    try:
        environment = GatewayEnvironment()
    except ValidationError as error:
        sys.exit(f"gateway: {error}")
    contract, edge_secret = folder / "contract.binpb", folder / tls.EDGE_SECRET
    shutil.copyfile(CONTRACT, contract)
    if environment.gateway_tls_certificate:
        secret = tls.edge_secret(
            certificate=str(environment.gateway_tls_certificate), key=str(environment.gateway_tls_key)
        )
        edge_secret.write_text(json.dumps(secret, indent=1), encoding="utf-8")
    try:
        config = render(environment.settings(descriptor_path=contract, edge_secret=edge_secret))
        mesh_tls.write_secrets(environment.identity_dir)
    except (OSError, ValueError) as error:
        sys.exit(f"gateway: TWINMESH_IDENTITY_DIR={environment.identity_dir}: {error}")
    (folder / "envoy.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
