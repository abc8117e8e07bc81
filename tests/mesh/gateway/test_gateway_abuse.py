"""Clients that take what they need not: slow, greedy, or only out to keep the gateway busy."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import grpc
import h2.events
import h2.settings
import httpx
import pytest
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from gateway.settings import ClientLimits, Upstream
from meshkit.testing import envoy_admin
from meshkit.testing.auth import TokenMint
from tests.mesh.gateway import neighbours
from tests.mesh.gateway.conftest import Gateway, StartGateway, reason
from tests.mesh.gateway.neighbours import Arrivals
from tests.mesh.grpc_frames import framed
from tests.mesh.http2_client import Http2
from twinmesh.asset.v1 import device_service_pb2

_STREAMS = 1_000  # of one connection, as envoy.yaml says
_CONNECTIONS = 20
_FLOOD = 20_000


@pytest.fixture(scope="module")
def narrow(start_gateway: StartGateway) -> Iterator[Gateway]:
    """A gateway of little patience and few connections."""
    arrivals, mint = Arrivals(), TokenMint()
    with ExitStack() as stack:
        auth = stack.enter_context(neighbours.auth_svc(arrivals, mint))
        asset = stack.enter_context(neighbours.asset_svc(arrivals))
        gateway = start_gateway(
            mint=mint,
            arrivals=arrivals,
            upstreams={
                Upstream.AUTH: [auth],
                Upstream.ASSET: [asset],
                Upstream.INGEST: [asset],
                Upstream.TWIN: [asset],
            },
            client_limits=ClientLimits(
                connections=40, listener_connections=_CONNECTIONS, headers_timeout_s=1, request_timeout_s=2
            ),
        )
        gateway.reach(Upstream.ASSET)
        yield gateway


def _connect(gateway: Gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=20)


def _deaf(gateway: Gateway) -> socket.socket:
    """A connection that soon takes no answers, as little as the kernel keeps of them for it."""
    made = socket.socket()
    # Before it connects: what the other side may send is told then.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(20)
    made.connect(("127.0.0.1", gateway.port))
    return made


def _all(connection: socket.socket) -> bytes:
    """All that is said until the other side closes."""
    said = b""
    try:
        while piece := connection.recv(65536):
            said += piece
    except ConnectionResetError:
        pass
    return said


def _http2(gateway: Gateway) -> Http2:
    return Http2(_connect(gateway), "a")


def _serves(gateway: Gateway) -> bool:
    return httpx.get(
        f"http://127.0.0.1:{gateway.port}/v1/devices", headers=gateway.bearer, trust_env=False
    ).is_success


@pytest.mark.parametrize(
    "begun",
    [
        pytest.param(b"GET /v1/devices HTTP/1.1\r\nhost: a\r\nx-slow: ", id="headers"),
        pytest.param(b"GET /v1/dev", id="path"),
    ],
)
def test_headers_that_do_not_end_end_the_connection(narrow: Gateway, begun: bytes) -> None:
    with _connect(narrow) as slow:
        slow.sendall(begun)
        assert _all(slow).startswith(b"HTTP/1.1 504 ")
    assert _serves(narrow)


def test_a_json_body_has_its_time_however_steadily_it_drips(narrow: Gateway) -> None:
    """A byte now and then is no idle stream, so that only the whole time bounds it."""
    before = len(narrow.arrivals.requests)
    with _connect(narrow) as slow:
        slow.sendall(
            b"POST /v1/auth/login HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            b"connection: close\r\ncontent-length: 10000\r\n\r\n"
        )
        slow.settimeout(0.25)
        answer = b""
        for _ in range(60):
            slow.sendall(b" ")
            try:
                answer = slow.recv(65536)
                break
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"DEADLINE_EXCEEDED" in answer
    assert len(narrow.arrivals.requests) == before


def test_a_message_has_its_time_also_that_of_a_watch(narrow: Gateway) -> None:
    with _http2(narrow) as client:
        client.open_rpc("/twinmesh.twin.v1.TwinService/WatchTwins", narrow.bearer)
        client.flush()
        answer = next(each for each in client.events() if isinstance(each, h2.events.ResponseReceived))
    assert (b"grpc-status", str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0]).encode()) in answer.headers


def test_a_watch_lasts_longer_than_its_request_may_take(
    start_gateway: StartGateway, gateway: Gateway
) -> None:
    arrivals = Arrivals()
    with ExitStack() as stack:
        auth = stack.enter_context(neighbours.auth_svc(arrivals, gateway.mint))
        twin = stack.enter_context(neighbours.twin_svc(arrivals))
        upstreams = {each: [twin] for each in Upstream} | {Upstream.AUTH: [auth]}
        patient = start_gateway(
            mint=gateway.mint,
            arrivals=arrivals,
            upstreams=upstreams,
            client_limits=ClientLimits(request_timeout_s=1),
        )
        patient.reach(Upstream.TWIN)
        path = "/v1/twins:watch?ids=a"
        with patient.http.stream("GET", path, headers=patient.bearer, timeout=20) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            watch = arrivals.watches.get(timeout=20)
            # Longer than that time, and nobody has ended it.
            assert not watch.over.wait(2)
            watch.tell(gap={})
            assert any("gap" in line for line in lines)
            watch.end()


def test_a_listener_takes_so_many_connections_and_others_go_on(narrow: Gateway) -> None:
    with ExitStack() as stack:
        # The client of before may hold one.
        held = [stack.enter_context(_connect(narrow)) for _ in range(_CONNECTIONS + 5)]
        refused = 0
        for each in held:
            try:
                each.sendall(b"GET /healthz/live HTTP/1.1\r\nhost: a\r\n\r\n")
                refused += not each.recv(65536)
            except ConnectionError:
                refused += 1
        assert 5 <= refused <= 6
    retry(
        retry=retry_if_exception_type(httpx.TransportError), stop=stop_after_delay(20), wait=wait_fixed(0.1)
    )(_serves)(narrow)


def test_all_listeners_together_take_so_many_connections(start_gateway: StartGateway) -> None:
    """Those of the admin interface and of the inner listener count as well."""
    arrivals, mint = Arrivals(), TokenMint()
    with ExitStack() as stack:
        auth = stack.enter_context(neighbours.auth_svc(arrivals, mint))
        gateway = start_gateway(
            mint=mint,
            arrivals=arrivals,
            upstreams={each: [auth] for each in Upstream},
            client_limits=ClientLimits(connections=_CONNECTIONS, listener_connections=10 * _CONNECTIONS),
        )
        held = [stack.enter_context(_connect(gateway)) for _ in range(2 * _CONNECTIONS)]
        served = 0
        for each in held:
            try:
                each.sendall(b"GET /healthz/live HTTP/1.1\r\nhost: a\r\n\r\n")
                served += bool(each.recv(65536))
            except ConnectionError:
                continue
        assert 0 < served <= _CONNECTIONS


def test_streams_beyond_those_of_a_connection_are_refused(gateway: Gateway) -> None:
    with _http2(gateway) as client:
        client.flush()
        events = client.events()
        settings = next(e for e in events if isinstance(e, h2.events.RemoteSettingsChanged))
        code = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
        assert settings.changed_settings[code].new_value == _STREAMS
        # As one who does not care.
        client.h2.remote_settings[code] = 10 * _STREAMS
        client.h2.remote_settings.acknowledge()
        opened = [client.open_stream("/v1/auth/login") for _ in range(_STREAMS + 1)]
        client.flush()
        kinds = (h2.events.StreamReset, h2.events.ConnectionTerminated)
        ended = next((each for each in events if isinstance(each, kinds)), None)
        # Or the whole connection is closed, whose notice may be lost behind what was sent.
        assert not isinstance(ended, h2.events.StreamReset) or ended.stream_id == opened[-1]
    assert _serves(gateway)


def test_a_message_that_does_not_end_is_kept_from_the_service(gateway: Gateway) -> None:
    body = framed(device_service_pb2.GetDeviceRequest(id="pump"))
    before = envoy_admin.sent_on(gateway.admin_port, Upstream.ASSET)
    with _http2(gateway) as client:
        stream = client.open_rpc("/twinmesh.asset.v1.DeviceService/GetDevice", gateway.bearer)
        client.h2.send_data(stream, body[:-1])
        client.settle()
        assert envoy_admin.sent_on(gateway.admin_port, Upstream.ASSET) == before
        client.h2.send_data(stream, body[-1:], end_stream=True)
        client.flush()
        events = client.events()
        answer = next(each for each in events if isinstance(each, h2.events.ResponseReceived))
        assert (b":status", b"200") in answer.headers
        assert isinstance(next(events), h2.events.DataReceived)


def test_opening_and_resetting_without_end_ends_the_connection(gateway: Gateway) -> None:
    counter = "http.edge.downstream_rq_too_many_premature_resets"
    before, ended_before = len(gateway.arrivals.requests), gateway.counted(counter)

    def flood(client: Http2) -> None:
        for _ in range(_FLOOD):
            client.h2.reset_stream(client.open_stream("/v1/auth/login"))
            client.flush()

    with _http2(gateway) as client, pytest.raises(ConnectionError):
        flood(client)
    assert gateway.counted(counter) == ended_before + 1
    assert len(gateway.arrivals.requests) == before
    assert _serves(gateway)


def test_pings_and_settings_without_end_end_the_connection(gateway: Gateway) -> None:
    """Each is to be answered, and whoever reads no answers would have them kept."""
    counter = "http2.outbound_control_flood"

    def ping(client: Http2) -> None:
        client.h2.ping(bytes(8))

    def settings(client: Http2) -> None:
        client.h2.update_settings({h2.settings.SettingCodes.ENABLE_PUSH: 0})

    def flood(client: Http2, send: Callable[[Http2], None]) -> None:
        for _ in range(_FLOOD * 10):
            send(client)
            client.flush()

    with _http2(gateway) as first:
        # From here on Envoy counts.
        first.flush()
        next(first.events())
    for send in (ping, settings):
        before = gateway.counted(counter)
        with Http2(_deaf(gateway), "a") as client, pytest.raises(ConnectionError):
            flood(client, send)
        assert gateway.counted(counter) == before + 1, send.__name__
    assert _serves(gateway)


def test_the_gateway_watches_what_it_is_loaded_with(gateway: Gateway) -> None:
    """What Envoy does when its memory or its connections run out, all of it idle here."""
    for action in ("shrink_heap", "reset_high_memory_stream", "stop_accepting_requests"):
        assert gateway.counted(f"overload.envoy.overload_actions.{action}.active") == 0
    for resource in ("fixed_heap", "global_downstream_max_connections"):
        assert gateway.counted(f"overload.envoy.resource_monitors.{resource}.failed_updates") == 0


def test_headers_beyond_the_limit_are_refused(gateway: Gateway) -> None:
    with _connect(gateway) as large:
        large.sendall(b"GET /v1/devices HTTP/1.1\r\nhost: a\r\n" + b"x-large: " + b"x" * 30_000 + b"\r\n\r\n")
        assert _all(large).startswith(b"HTTP/1.1 431 ")
    with _connect(gateway) as many:
        many.sendall(b"GET /v1/devices HTTP/1.1\r\nhost: a\r\n" + b"x-one: 1\r\n" * 200 + b"\r\n")
        assert _all(many).startswith(b"HTTP/1.1 431 ")
    with _http2(gateway) as client:
        client.open_stream("/v1/auth/login", more={"x-large": "x" * 30_000})
        client.flush()
        kinds = (h2.events.StreamReset, h2.events.ConnectionTerminated)
        assert any(isinstance(each, kinds) for each in client.events())
    assert _serves(gateway)


def test_a_header_with_an_underscore_does_not_arrive(gateway: Gateway) -> None:
    """Something behind might read x_tenant_id as x-tenant-id."""
    headers = gateway.bearer | {"x_tenant_id": "rival", "grpc_timeout": "1n", "x-plain": "1"}
    assert gateway.http.get("/v1/devices", headers=headers).is_success
    arrived = gateway.arrivals.metadata[-1]
    assert arrived["x-plain"] == "1"
    assert not [name for name in arrived if "_" in name]


def test_a_header_that_grpc_does_not_know_does_not_arrive(gateway: Gateway) -> None:
    """HTTP allows its name, and a gRPC server would fail on the whole call."""
    unknown = ("v.$hp3", "#first", "last`", "a!b", "x~", "%", "x'y", "x|y", "x^y", "x*y", "x+y", "x&y")
    headers = gateway.bearer | dict.fromkeys(unknown, "1") | {"x-plain.2": "1"}
    answer = gateway.http.get("/v1/devices", headers=headers)
    assert answer.is_success, answer.text
    arrived = gateway.arrivals.metadata[-1]
    assert arrived["x-plain.2"] == "1"
    assert arrived.keys().isdisjoint(unknown)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/auth/login/../../devices",
        "/v1/auth/login/%2e%2e/%2e%2e/devices",
        "//v1//devices",
        "/v1/auth/login/..%2f..%2fdevices",
        "/v1/auth/login%2f..%2f..%2fdevices",
        "/.well-known/jwks.json%2f..%2f..%2fv1%2fdevices",
        "/twinmesh.auth.v1.SessionService/Login/../../twinmesh.asset.v1.DeviceService/ListDevices",
        "/twinmesh.auth.v1.SessionService%2fLogin",
    ],
)
def test_no_spelling_of_a_path_makes_it_public(gateway: Gateway, path: str) -> None:
    before = len(gateway.arrivals.requests)
    for method in (b"GET", b"POST"):
        with _connect(gateway) as raw:
            raw.sendall(
                method + b" " + path.encode() + b" HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n"
                b"connection: close\r\n\r\n"
            )
            answer = _all(raw)
        assert answer.startswith(b"HTTP/1.1 401 "), answer
        assert b"CREDENTIAL_MISSING" in answer
    assert len(gateway.arrivals.requests) == before


def test_an_escaped_slash_stays_in_its_field(gateway: Gateway) -> None:
    answer = gateway.http.get("/v1/devices/a%2Fb", headers=gateway.bearer)
    assert answer.is_success
    assert gateway.arrivals.requests[-1].id in ("a/b", "a%2Fb")
    assert reason(gateway.http.get("/v1/devices/a/b", headers=gateway.bearer)) == "ROUTE_NOT_FOUND"
