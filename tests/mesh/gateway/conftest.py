"""A real Envoy in front of neighbours."""

import queue
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gateway.contract import CONTRACT
from gateway.mesh_tls import write_secrets
from gateway.render import render
from gateway.settings import ClientLimits, Endpoint, GatewayIdentity, GatewaySettings, Upstream
from meshkit.embedded import EmbeddedEnvoy
from meshkit.embedded.ports import free_ports
from meshkit.testing import envoy_admin, identities
from meshkit.testing.auth import TokenMint
from meshkit.testing.mesh import eventually
from tests.mesh.gateway import neighbours
from tests.mesh.gateway.neighbours import TENANT, Arrivals, Watches

ORIGIN = "https://app.example"
MAX_JSON_BODY_BYTES = 64 * 1024


@dataclass
class Gateway:
    """A running gateway and the ways to call it."""

    port: int
    admin_port: int
    access_log: Path
    mint: TokenMint
    arrivals: Arrivals
    http: httpx.Client
    channel: grpc.Channel

    @property
    def token(self) -> str:
        return self.mint.token(tenant=TENANT, permissions=["device:read"])

    @property
    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    def counted(self, counter: str) -> int:
        """What Envoy has counted since its start."""
        return envoy_admin.counted(self.admin_port, counter)

    def reach(self, *services: Upstream) -> None:
        """Wait until Envoy has found services healthy; until then it refuses what is for them."""
        healthy = [f"cluster.{service}.membership_healthy" for service in services]
        eventually(lambda: all(map(self.counted, healthy)), f"{services} are reached")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple(self.bearer.items())


def reason(answer: httpx.Response) -> str:
    """The reason of a JSON error, after a look at the whole of its shape."""
    assert answer.headers["content-type"].startswith("application/json"), answer.text
    body = answer.json()
    assert set(body) == {"code", "message", "details"}
    assert isinstance(body["code"], int)
    assert body["message"]
    info = body["details"][0]
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert info["domain"] == "twinmesh"
    assert len(answer.headers["x-trace-id"]) == 32
    return str(info["reason"])


def detail(answer: httpx.Response, kind: str) -> Mapping[str, Any]:
    """The detail of one type in a JSON error."""
    for each in answer.json()["details"]:
        if each["@type"] == f"type.googleapis.com/google.rpc.{kind}":
            return dict(each)
    raise AssertionError(f"no {kind} in {answer.text}")


def info_of(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo of a gRPC error."""
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    assert status is not None, error
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "twinmesh"
    return info


StartGateway = Callable[..., Gateway]


@pytest.fixture(scope="session")
def start_gateway() -> Iterator[StartGateway]:
    """Start a gateway before the given ports of services; they all end with the session."""
    with ExitStack() as stack:

        def start(
            *,
            mint: TokenMint,
            arrivals: Arrivals,
            upstreams: Mapping[Upstream, Sequence[int]],
            otlp: int | None = None,
            requests_per_second: int = 10_000,
            client_limits: ClientLimits | None = None,
        ) -> Gateway:
            # World-traversable, since Envoy drops to an unprivileged user.
            home = Path(tempfile.mkdtemp(prefix="tm-gateway-"))
            home.chmod(0o755)
            stack.callback(shutil.rmtree, home, ignore_errors=True)
            port, admin_port, jwks_port = free_ports(3)
            access_log = home / "logs" / "envoy.log"
            write_secrets(identity := identities.identity_dir("gateway"))

            def rendered(descriptor: Path) -> Mapping[str, Any]:
                return render(
                    GatewaySettings(
                        bind="127.0.0.1",
                        port=port,
                        admin_port=admin_port,
                        jwks_port=jwks_port,
                        upstreams={
                            upstream: [Endpoint("127.0.0.1", each) for each in ports]
                            for upstream, ports in upstreams.items()
                        },
                        identity=GatewayIdentity(folder=identity, trust_domain=identities.TRUST_DOMAIN),
                        descriptor_path=descriptor,
                        otlp=None if otlp is None else Endpoint("127.0.0.1", otlp),
                        cors_origins=[ORIGIN],
                        requests_per_second=requests_per_second,
                        max_json_body_bytes=MAX_JSON_BODY_BYTES,
                        client_limits=client_limits or ClientLimits(),
                    )
                )

            envoy = EmbeddedEnvoy(
                home=home, descriptor=CONTRACT, render=rendered, concurrency=1, log_path=access_log
            )
            stack.callback(envoy.remove)
            envoy.start()
            http = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False))
            channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
            return Gateway(port, admin_port, access_log, mint, arrivals, http, channel)

        yield start


@pytest.fixture(scope="session")
def gateway(start_gateway: StartGateway) -> Iterator[Gateway]:
    """The gateway of a healthy mesh."""
    arrivals, mint = Arrivals(), TokenMint()
    with ExitStack() as stack:
        upstreams = {
            Upstream.AUTH: [stack.enter_context(neighbours.auth_svc(arrivals, mint))],
            Upstream.ASSET: [stack.enter_context(neighbours.asset_svc(arrivals))],
            Upstream.INGEST: [stack.enter_context(neighbours.ingest_svc(arrivals))],
            Upstream.TWIN: [stack.enter_context(neighbours.twin_svc(arrivals))],
        }
        otlp = stack.enter_context(neighbours.collector(arrivals))
        gateway = start_gateway(mint=mint, arrivals=arrivals, upstreams=upstreams, otlp=otlp)
        gateway.reach(*Upstream)
        yield gateway


@pytest.fixture
def watches(gateway: Gateway) -> Watches:
    """The watches that this test opens, as twin_svc has them."""
    gateway.arrivals.watches = queue.SimpleQueue()
    return gateway.arrivals.watches
