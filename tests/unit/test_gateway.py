"""What the rendered gateway says, without running it."""

import re
from pathlib import Path
from typing import Any

import pytest

from auth_svc.signing_keys import JWKS_CACHE_S, PUBLISH_AHEAD_S
from gateway import transcoder
from gateway.contract import CONTRACT, read_contract
from gateway.render import render
from gateway.settings import (
    ClientLimits,
    DeviceDoor,
    Endpoint,
    GatewayEnvironment,
    GatewayIdentity,
    GatewaySettings,
    Upstream,
)
from meshkit.config import MAX_STREAM_LIFETIME_SECONDS
from meshkit.testing import identities
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

ADDRESSES = {f"TWINMESH_{name}_ADDRESS": "127.0.0.1:1" for name in ("AUTH", "ASSET", "INGEST", "TWIN")}


def rendered(**changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "bind": "127.0.0.1",
        "port": 1,
        "admin_port": 2,
        "jwks_port": 3,
        "upstreams": {each: [Endpoint("127.0.0.1", 4)] for each in Upstream},
        "identity": GatewayIdentity(folder=Path("/identity"), trust_domain="mesh"),
        "descriptor_path": CONTRACT,
        **changes,
    }
    return render(GatewaySettings(**settings))


def walk(node: Any) -> Any:
    yield node
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from walk(child)


def cluster(config: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [each for each in config["static_resources"]["clusters"] if each["name"] == name]
    return dict(found)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:80", "localhost", 80),
        ("[::1]:8080", "::1", 8080),
        ("http://collector:4317", "collector", 4317),
        ("http://collector:4317/", "collector", 4317),
    ],
)
def test_endpoints_are_read(text: str, host: str, port: int) -> None:
    assert Endpoint.parse(text) == Endpoint(host, port)


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "host:0", "host:65536", "host:http"])
def test_wrong_endpoints_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        Endpoint.parse(text)


@pytest.mark.parametrize("trusted_hops", [0, 1])
def test_only_what_proxies_say_of_addresses_comes_in(trusted_hops: int) -> None:
    matches = _header_matches(rendered(trusted_hops=trusted_hops))
    for name in ("x-forwarded-", "f", "fo", "fog", "form", "fuel", "forward", "host", "client-cert"):
        header = f"x-forwarded-{name.removeprefix('x-forwarded-')}"
        assert _is_stripped(matches, header), header
    assert _is_stripped(matches, "x-forwarded-for") == (trusted_hops == 0)
    assert not _is_stripped(matches, "authorization")


@pytest.mark.parametrize("trusted_hops", [0, 1])
def test_only_names_that_grpc_takes_come_in(trusted_hops: int) -> None:
    matches = _header_matches(rendered(trusted_hops=trusted_hops))
    for name in ("$a", "a$", "a$b", "~", "a_b", "a:"):
        assert _is_stripped(matches, name), name
    # What HTTP/2 has of its own begins with a colon.
    for name in (":path", ":authority", "a", "x-plain.2-bin", "0"):
        assert not _is_stripped(matches, name), name


def test_no_proxy_tells_addresses_at_the_devices_listener() -> None:
    door = DeviceDoor(port=5, trust=Path("/trust"))
    edge, _, devices = rendered(devices=door, trusted_hops=2)["static_resources"]["listeners"]
    hops = {}
    for listener in (edge, devices):
        (chain,) = listener["filter_chains"]
        hops[listener["name"]] = chain["filters"][0]["typed_config"]["xff_num_trusted_hops"]
    assert hops == {"edge": 2, "devices": 0}


def _header_matches(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [each["key_matcher"] for each in walk(config) if isinstance(each, dict) and "key_matcher" in each]


def _is_stripped(matches: list[dict[str, Any]], name: str) -> bool:
    return any(
        name.startswith(match["prefix"])
        if "prefix" in match
        else re.fullmatch(match["safe_regex"]["regex"], name) is not None
        for match in matches
    )


def test_nothing_is_left_to_fill_in() -> None:
    assert not [node for node in walk(rendered()) if isinstance(node, str) and "${" in node]
    assert None not in list(walk(rendered()))


def test_rendering_is_a_function_of_the_settings() -> None:
    assert rendered() == rendered()


def test_clusters_know_addresses_and_names() -> None:
    assert cluster(rendered(), "twin_svc")["type"] == "STATIC"
    named = {each: [Endpoint("twin", 1), Endpoint("twin", 2)] for each in Upstream}
    twin = cluster(rendered(upstreams=named), "twin_svc")
    assert twin["type"] == "STRICT_DNS"
    assert len(twin["load_assignment"]["endpoints"][0]["lb_endpoints"]) == 2


def test_both_listeners_have_the_same_limits() -> None:
    door = DeviceDoor(port=5, trust=Path("/trust"))
    limits = ClientLimits(connections=9, listener_connections=7, headers_timeout_s=3)
    config = rendered(devices=door, client_limits=limits)
    (layer,) = config["layered_runtime"]["layers"]
    edge, _, devices = config["static_resources"]["listeners"]
    for listener in (edge, devices):
        runtime = layer["static_layer"]
        assert runtime[f"envoy.resource_limits.listener.{listener['name']}.connection_limit"] == 7
        (chain,) = listener["filter_chains"]
        manager = chain["filters"][0]["typed_config"]
        assert manager["request_headers_timeout"] == "3s"
        assert manager["stream_idle_timeout"] == "60s"
        for part in ("common_http_protocol_options", "http2_protocol_options"):
            assert manager[part]
    assert devices["filter_chains"][0]["transport_socket_connect_timeout"] == "3s"


def test_without_a_receiver_nothing_is_recorded() -> None:
    def sampled(config: dict[str, Any]) -> float:
        (edge, _) = config["static_resources"]["listeners"]
        manager = edge["filter_chains"][0]["filters"][0]["typed_config"]
        return float(manager["tracing"]["random_sampling"]["value"])

    assert sampled(rendered(trace_sample_ratio=0.25)) == 0
    assert sampled(rendered(trace_sample_ratio=0.25, otlp=Endpoint("127.0.0.1", 5))) == 25


def test_reasons_are_those_of_the_contract() -> None:
    reasons = {node["reason"] for node in walk(rendered()) if isinstance(node, dict) and "reason" in node}
    assert reasons >= {"TOKEN_INVALID", "ROUTE_NOT_FOUND", "RATE_LIMITED"}
    assert {f"ERROR_REASON_{reason}" for reason in reasons} <= set(ErrorReason.keys())


def test_every_reachable_rpc_has_a_route_and_streams_no_limit() -> None:
    contract = read_contract(CONTRACT)
    assert "twinmesh.asset.v1.ProfileService" not in contract.services
    (edge, _) = rendered()["static_resources"]["listeners"]
    manager = edge["filter_chains"][0]["filters"][0]["typed_config"]
    (host,) = manager["route_config"]["virtual_hosts"]
    routes = {route["match"].get("path"): route for route in host["routes"]}
    for rpc in contract.rpcs:
        limit = routes[rpc.path]["route"]["max_stream_duration"]["max_stream_duration"]
        assert (limit == "0s") is (rpc.streaming and not rpc.answers_files), rpc.path
        retried = routes[rpc.path]["route"].get("retry_policy", {}).get("retry_on", "").split(",")
        assert ("reset" in retried) is (rpc.idempotent and not rpc.streaming), rpc.path
        assert "refused-stream" in retried, rpc.path
        if rpc.answers_files:
            # Longer than an export's snapshot is held; and who takes nothing is left.
            assert int(limit.removesuffix("s")) > 15 * 60
            assert routes[rpc.path]["route"]["idle_timeout"] == "60s"
        elif rpc.streaming:
            idle_seconds = int(routes[rpc.path]["route"]["idle_timeout"].removesuffix("s"))
            assert idle_seconds > MAX_STREAM_LIFETIME_SECONDS, rpc.path


def test_streams_of_the_server_are_events_by_a_route_and_else_transcoded_as_all_are() -> None:
    (edge, _) = rendered()["static_resources"]["listeners"]
    manager = edge["filter_chains"][0]["filters"][0]["typed_config"]
    (base,) = [each["typed_config"] for each in manager["http_filters"] if each["name"] == transcoder.FILTER]
    (host,) = manager["route_config"]["virtual_hosts"]
    overrides = {
        (route["match"]["path"], route["match"]["headers"][0]["string_match"]["exact"]): config
        for route in host["routes"]
        if (config := route.get("typed_per_filter_config", {}).get(transcoder.FILTER))
    }
    streamed = [rpc for rpc in read_contract(CONTRACT).rpcs if rpc.server_streaming and not rpc.answers_files]
    assert set(overrides) == {(each.template, each.method) for rpc in streamed for each in rpc.bindings}
    assert ("/v1/twins:watch", "GET") in overrides
    assert ("/v1/history:export", "GET") not in overrides
    for config in overrides.values():
        assert config["print_options"].pop("stream_sse_style_delimited") is True
        assert config == base


def test_the_environment_makes_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ADDRESSES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TWINMESH_IDENTITY_DIR", str(identities.identity_dir("gateway")))
    monkeypatch.setenv("TWINMESH_ASSET_ADDRESS", "one:1,two:2")
    monkeypatch.setenv("TWINMESH_CORS_ORIGINS", "https://a.example, https://b.example")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317")
    settings = GatewayEnvironment().settings(
        descriptor_path=Path("contract.binpb"), edge_secret=Path("edge.json")
    )
    assert settings.upstreams[Upstream.ASSET] == (Endpoint("one", 1), Endpoint("two", 2))
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.otlp == Endpoint("collector", 4317)
    identity = GatewayIdentity(folder=identities.identity_dir("gateway"), trust_domain="twinmesh.test")
    assert settings.identity == identity


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TWINMESH_AUTH_ADDRESS", "nowhere"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector"),
        ("TWINMESH_TRACE_SAMPLE_RATIO", "2"),
        ("TWINMESH_GATEWAY_PORT", "0"),
    ],
)
def test_a_wrong_environment_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    for variable, address in ADDRESSES.items():
        monkeypatch.setenv(variable, address)
    monkeypatch.setenv("TWINMESH_IDENTITY_DIR", str(identities.identity_dir("gateway")))
    GatewayEnvironment()
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="validation error"):
        GatewayEnvironment()


def test_a_new_key_is_published_for_twice_as_long_as_envoy_keeps_keys_before_it_signs() -> None:
    kept = [
        node["cache_duration"]
        for node in walk(rendered())
        if isinstance(node, dict) and "cache_duration" in node
    ]
    assert set(kept) == {f"{JWKS_CACHE_S}s"}
    assert PUBLISH_AHEAD_S == 2 * JWKS_CACHE_S
