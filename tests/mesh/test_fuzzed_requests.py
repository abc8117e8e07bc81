"""Whatever is sent to an rpc, by protobuf or JSON, is answered by a documented refusal or done.

Requests are drawn from the descriptors, so a new rpc is attacked without a new test;
`make soak` draws many more.
"""

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auth_svc.signing_keys import KeyRing
from gateway.contract import CONTRACT, HttpBinding, Rpc, read_contract
from meshkit.identity import INSTALLATION_PERMISSIONS
from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh
from tests.mesh.attacked_tenant import attackers_tokens, fill
from tests.mesh.fuzzing import EXISTING, HOSTILE, json_requests, payloads, request_descriptor
from tests.mesh.stream_site import SOAK

_CONTRACT = read_contract(CONTRACT)
_RPCS = _CONTRACT.rpcs
_RESUME = _CONTRACT.rpc("/twinmesh.auth.v1.TenantService/ResumeTenant")
# test_bad_input_stream has the one whose requests are a stream too.
_OF_ONE_REQUEST = [rpc for rpc in _RPCS if not rpc.client_streaming]
_ROUTES = [(rpc, binding) for rpc in _RPCS for binding in rpc.bindings]
_PAGED = [
    (rpc, binding)
    for rpc, binding in _ROUTES
    if binding.method == "GET" and "page_size" in request_descriptor(rpc).fields_by_name
]
_NEEDED = {"/v1/history:query": {"ids": EXISTING}}
# A crash shows as UNAVAILABLE, a hang as DEADLINE_EXCEEDED.
_NEVER = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
_TIMEOUT_S = 60
# Of each rpc and each route, of which there are 157: few in a common run.
_counted = settings() if SOAK else settings(max_examples=10)
_MIB = 1024 * 1024


def _of_route(route: tuple[Rpc, HttpBinding]) -> str:
    return f"{route[1].method} {route[1].template}"


@pytest.fixture(scope="module")
def token(mesh: Mesh, signing_keys: KeyRing) -> Callable[..., str]:
    return attackers_tokens(mesh, signing_keys, EXISTING)


@pytest.fixture(scope="module")
def channel(mesh: Mesh) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(mesh.address) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(mesh: Mesh) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=mesh.url, timeout=_TIMEOUT_S) as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
def services_survive(mesh: Mesh) -> Iterator[None]:
    """No process of the mesh ends or is replaced by what is sent here."""

    def running() -> dict[str, int]:
        return {part["name"]: part["pid"] for part in mesh.status()["parts"]}

    before = running()
    yield
    assert running() == before
    assert mesh.status()["ready"]


@pytest.fixture(scope="module")
def go_on(client: httpx.Client, token: Callable[..., str]) -> Callable[[Rpc], None]:
    """Makes up for what was sent, so that what comes later is attacked as well.

    A tenant that an operator has suspended would answer nothing but that, and what was deleted would not
    be found.
    """

    def make_up(rpc: Rpc) -> None:
        if rpc.permission in INSTALLATION_PERMISSIONS:
            headers = {"authorization": f"Bearer {token(_RESUME)}"}
            answer = client.post(f"/v1/tenants/{EXISTING}:resume", json={}, headers=headers)
            assert answer.status_code == 200, answer.text
            answer = client.get("/v1/devices", headers={"authorization": f"Bearer {token()}"})
            assert answer.status_code == 200, answer.text
        if rpc.name.startswith("Delete"):
            with httpx.Client(
                base_url=client.base_url, headers={"authorization": f"Bearer {token()}"}, timeout=_TIMEOUT_S
            ) as admin:
                fill(admin, EXISTING)

    return make_up


def _assert_documented(answer: httpx.Response) -> None:
    answer.read()
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        told = answer.json()
        assert any("reason" in detail for detail in told["details"]), told


# First, while what it asks for is there.
@pytest.mark.parametrize("route", _PAGED, ids=_of_route)
def test_pages_are_bounded_and_tokens_of_pages_not_trusted(
    client: httpx.Client, token: Callable[..., str], route: tuple[Rpc, HttpBinding]
) -> None:
    path = route[1].template.replace("{id}", EXISTING)
    headers = {"authorization": f"Bearer {token(route[0])}"}
    needed = _NEEDED.get(path, {})
    largest = client.get(path, params={**needed, "pageSize": 10**9}, headers=headers)
    assert largest.status_code == 200, largest.text
    for hostile in HOSTILE[1:]:
        answer = client.get(path, params={**needed, "pageToken": hostile[:2_000]}, headers=headers)
        assert 400 <= answer.status_code < 500, (hostile, answer.text)
        _assert_documented(answer)


@pytest.mark.parametrize("rpc", _OF_ONE_REQUEST, ids=lambda rpc: rpc.path)
@_counted
@given(data=st.data())
def test_no_bytes_make_an_rpc_fail_in_itself(
    channel: grpc.Channel,
    token: Callable[..., str],
    go_on: Callable[[Rpc], None],
    rpc: Rpc,
    data: st.DataObject,
) -> None:
    payload = data.draw(payloads(request_descriptor(rpc)))
    # A single answer is a stream of one.
    ask: Any = channel.unary_stream(rpc.path)
    call = ask(payload, metadata=bearer(token(rpc)), timeout=_TIMEOUT_S)
    try:
        # A stream may go on for ever.
        next(call, None)
        call.cancel()
    except grpc.RpcError as error:
        refused: Any = error
        assert refused.code() not in _NEVER, (payload, refused.code(), refused.details())
    go_on(rpc)


@pytest.mark.parametrize("route", _ROUTES, ids=_of_route)
@_counted
@given(data=st.data())
def test_no_json_is_answered_by_a_server_error(
    client: httpx.Client,
    token: Callable[..., str],
    go_on: Callable[[Rpc], None],
    route: tuple[Rpc, HttpBinding],
    data: st.DataObject,
) -> None:
    rpc, binding = route
    request = data.draw(json_requests(rpc, binding))
    headers = {**request.pop("headers", {}), "authorization": f"Bearer {token(rpc)}"}
    with client.stream(**request, headers=headers) as answer:
        if rpc.streaming and answer.status_code == 200:
            return  # It may go on for ever.
        _assert_documented(answer)
    go_on(rpc)


def _peak_bytes(pids: dict[str, int]) -> dict[str, int]:
    """Return the most memory that each process has ever held."""
    return {
        name: int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) * 1024
        for name, pid in pids.items()
    }


def test_a_gzip_bomb_as_json_is_not_unpacked(client: httpx.Client, token: Callable[..., str]) -> None:
    bomb = gzip.compress(b'{"readings": [' + b" " * 256 * _MIB)
    headers = {
        "authorization": f"Bearer {token()}",
        "content-encoding": "gzip",
        "content-type": "application/json",
    }
    answer = client.post("/v1/telemetry", content=bomb, headers=headers)
    assert answer.status_code == 400, answer.text
    _assert_documented(answer)


def test_a_gzip_bomb_as_grpc_is_refused_and_costs_little_memory(
    mesh: Mesh, channel: grpc.Channel, token: Callable[..., str]
) -> None:
    pids = {part["name"]: part["pid"] for part in mesh.parts("ingest_svc")}
    before = _peak_bytes(pids)
    call: Any = channel.unary_unary("/twinmesh.ingest.v1.IngestService/IngestTelemetry")
    with pytest.raises(grpc.RpcError) as caught:
        call(
            b"\0" * 256 * _MIB,
            metadata=bearer(token()),
            timeout=_TIMEOUT_S,
            compression=grpc.Compression.Gzip,
        )
    refused: Any = caught.value
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, refused.details()
    grown = {name: peak - before[name] for name, peak in _peak_bytes(pids).items()}
    assert max(grown.values()) < 64 * _MIB, grown


def test_metadata_that_is_too_long_is_refused(client: httpx.Client, token: Callable[..., str]) -> None:
    credential = {"authorization": f"Bearer {token()}"}
    many = {f"x-many-{number}": "1" for number in range(200)}
    for name, headers in {"one long": {"x-long": "x" * 30_000}, "many": many}.items():
        answer = client.get("/v1/devices", headers={**credential, **headers})
        assert answer.status_code == 431, (name, answer.text)
        _assert_documented(answer)
    long_path = client.get(f"/v1/devices/{'x' * 30_000}", headers=credential)
    assert long_path.status_code == 431, long_path.text


def test_metadata_that_is_too_long_ends_no_other_call(mesh: Mesh, token: Callable[..., str]) -> None:
    with grpc.insecure_channel(mesh.address) as channel:
        call: Any = channel.unary_unary("/twinmesh.twin.v1.TwinService/ListTwins")
        with pytest.raises(grpc.RpcError):
            call(b"", metadata=(*bearer(token()), ("x-long", "x" * 30_000)), timeout=_TIMEOUT_S)
        call(b"", metadata=bearer(token()), timeout=_TIMEOUT_S)


def test_a_filter_takes_patterns_for_letters(client: httpx.Client, token: Callable[..., str]) -> None:
    """`%`, `*` and `>` are refused or looked for as they stand: nothing is found by them."""
    headers = {"authorization": f"Bearer {token()}"}
    # Nor has what was sent before taken it away.
    there = client.get("/v1/twins", params={"ids": EXISTING}, headers=headers).json()
    assert [twin["id"] for twin in there["twins"]] == [EXISTING]
    for hostile in ("%", "*", ">", "_", "' OR '1'='1"):
        answer = client.get("/v1/twins", params={"ids": hostile}, headers=headers)
        _assert_documented(answer)
        assert EXISTING not in json.dumps(answer.json().get("twins", [])), hostile
