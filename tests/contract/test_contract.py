"""Rules that every rpc of the contract must keep."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor

import twinmesh
from meshkit import policy
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

GENERATED = Path(next(iter(twinmesh.__path__)))


def methods() -> Iterator[MethodDescriptor]:
    for module in sorted(GENERATED.glob("*/v*/*_pb2.py")):
        name = ".".join(module.with_suffix("").relative_to(GENERATED.parent).parts)
        for service in importlib.import_module(name).DESCRIPTOR.services_by_name.values():
            yield from service.methods


METHODS = list(methods())


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


@pytest.mark.parametrize("method", METHODS, ids=path_of)
def test_every_rpc_declares_who_may_call_it(method: MethodDescriptor) -> None:
    permission = policy.permission_of(path_of(method))
    assert permission is not None
    assert permission in {policy.PUBLIC, policy.AUTHENTICATED} or re.fullmatch(r"[a-z_]+:[a-z]+", permission)


def test_an_undeclared_rpc_is_nobodys() -> None:
    assert policy.permission_of("/twinmesh.twin.v1.TwinService/Nothing") is None
    assert policy.permission_of("/somewhere.else.Service/Method") is None


def test_json_routes_are_under_v1_and_unambiguous() -> None:
    seen: dict[tuple[str, str], str] = {}
    for method in METHODS:
        rule = method.GetOptions().Extensions[annotations_pb2.http]
        verb = rule.WhichOneof("pattern")
        if verb is None:
            continue
        route = getattr(rule, verb)
        assert route.startswith(("/v1/", "/healthz/", "/.well-known/")), route
        key = (verb, re.sub(r"\{[^}]*\}", "{}", route))
        assert key not in seen, f"{path_of(method)} and {seen.get(key)} share {key}"
        seen[key] = path_of(method)


def test_routes_that_scripts_rely_on() -> None:
    """The JSON surface that was promised; taking one away breaks somebody's script."""
    promised = {
        ("post", "/v1/auth/login"),
        ("post", "/v1/auth/refresh"),
        ("post", "/v1/auth/logout"),
        ("get", "/v1/auth/me"),
        ("get", "/.well-known/jwks.json"),
        ("get", "/v1/apiKeys"),
        ("post", "/v1/apiKeys"),
        ("delete", "/v1/apiKeys/{id}"),
        ("get", "/v1/users"),
        ("post", "/v1/users"),
        ("get", "/v1/users/{username}"),
        ("patch", "/v1/users/{user.username}"),
        ("delete", "/v1/users/{username}"),
        ("post", "/v1/users/{username}:resetPassword"),
        ("post", "/v1/users:changePassword"),
        ("post", "/v1/telemetry"),
        ("get", "/v1/twins/{id}"),
        ("get", "/v1/twins"),
        ("get", "/v1/twins/{id}/history"),
        ("get", "/healthz/live"),
        ("get", "/healthz/ready"),
    }
    for collection, field in (
        ("devices", "device"),
        ("deviceTypes", "device_type"),
        ("assets", "asset"),
        ("assetTypes", "asset_type"),
        ("roles", "role"),
    ):
        promised |= {
            ("get", f"/v1/{collection}"),
            ("post", f"/v1/{collection}"),
            ("get", f"/v1/{collection}/{{id}}"),
            ("patch", f"/v1/{collection}/{{{field}.id}}"),
            ("delete", f"/v1/{collection}/{{id}}"),
        }
    offered = set()
    for method in METHODS:
        rule = method.GetOptions().Extensions[annotations_pb2.http]
        verb = rule.WhichOneof("pattern")
        if verb is not None:
            offered.add((verb, getattr(rule, verb)))
    assert promised <= offered


def test_lists_page_alike() -> None:
    for method in METHODS:
        if method.name.startswith("List"):
            asked = set(method.input_type.fields_by_name)
            answered = set(method.output_type.fields_by_name)
            assert {"page_size", "page_token"} <= asked, path_of(method)
            assert "next_page_token" in answered, path_of(method)


def test_reasons_are_named_alike() -> None:
    for name in ErrorReason.keys():  # noqa: SIM118 - the enum wrapper is no mapping
        assert re.fullmatch(r"ERROR_REASON_[A-Z]+(_[A-Z]+)*", name)


def test_the_pool_holds_the_whole_contract() -> None:
    names = {method.containing_service.full_name for method in METHODS}
    for name in names:
        assert descriptor_pool.Default().FindServiceByName(name) is not None
    assert len(names) >= 9
