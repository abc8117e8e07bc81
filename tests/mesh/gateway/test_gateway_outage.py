"""The gateway while parts behind it are away, start late, or are asked too much."""

from collections.abc import Callable

import grpc
import pytest
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from gateway.settings import Upstream
from meshkit.embedded.ports import free_ports
from meshkit.testing.auth import TokenMint
from tests.mesh.gateway import neighbours
from tests.mesh.gateway.conftest import Gateway, StartGateway, detail, info_of, reason
from tests.mesh.gateway.neighbours import GOOD_KEY, Arrivals
from twinmesh.asset.v1 import device_service_pb2, device_service_pb2_grpc


def _until(condition: Callable[[], bool]) -> None:
    retry(retry=retry_if_result(lambda held: not held), stop=stop_after_delay(30), wait=wait_fixed(0.1))(
        condition
    )()


def _is_away(gateway: Gateway, path: str, credential: str, dependency: str) -> None:
    answer = gateway.http.get(path, headers={"authorization": credential})
    assert answer.status_code == 503
    assert reason(answer) == "DEPENDENCY_UNAVAILABLE"
    assert answer.json()["code"] == 14
    assert detail(answer, "ErrorInfo")["metadata"] == {"dependency": dependency}
    assert detail(answer, "RetryInfo")["retryDelay"] == "1s"


def test_services_may_start_after_the_gateway_and_come_and_go(start_gateway: StartGateway) -> None:
    arrivals, mint = Arrivals(), TokenMint()
    auth, asset, ingest, twin = free_ports(4)
    upstreams = {
        Upstream.AUTH: [auth],
        Upstream.ASSET: [asset],
        Upstream.INGEST: [ingest],
        Upstream.TWIN: [twin],
    }
    gateway = start_gateway(mint=mint, arrivals=arrivals, upstreams=upstreams)
    bearer = gateway.bearer["authorization"]

    # Without auth_svc nobody can be told: that is no fault of the credential.
    _is_away(gateway, "/v1/devices", bearer, "auth_svc")
    _is_away(gateway, "/v1/devices", f"Bearer {GOOD_KEY}", "auth_svc")
    ready = gateway.http.get("/healthz/ready")
    assert ready.status_code == 503
    assert detail(ready, "ErrorInfo")["metadata"] == {"dependency": "auth_svc"}

    with neighbours.auth_svc(arrivals, mint, port=auth):
        _until(lambda: _dependency(gateway, bearer) == "asset_svc")
        _is_away(gateway, "/v1/twins/x/history", bearer, "twin_svc")
        _is_away(gateway, "/v1/twins:watch", bearer, "twin_svc")
        devices = device_service_pb2_grpc.DeviceServiceStub(gateway.channel)
        with pytest.raises(grpc.RpcError) as refused:
            devices.ListDevices(device_service_pb2.ListDevicesRequest(), metadata=gateway.metadata)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert info_of(refused.value).metadata["dependency"] == "asset_svc"
        for _ in range(2):
            with neighbours.asset_svc(arrivals, port=asset):
                _until(lambda: gateway.http.get("/v1/devices", headers=gateway.bearer).status_code == 200)
            _until(lambda: _dependency(gateway, bearer) == "asset_svc")

    # The keys are kept: a token's owner does not notice that auth_svc is away.
    with neighbours.asset_svc(arrivals, port=asset):
        _until(lambda: gateway.http.get("/v1/devices", headers=gateway.bearer).status_code == 200)


def _dependency(gateway: Gateway, credential: str) -> str:
    answer = gateway.http.get("/v1/devices", headers={"authorization": credential})
    if answer.status_code != 503:
        return ""
    return str(detail(answer, "ErrorInfo")["metadata"]["dependency"])


def test_the_rate_of_requests_is_limited(start_gateway: StartGateway) -> None:
    arrivals, mint = Arrivals(), TokenMint()
    with (
        neighbours.auth_svc(arrivals, mint) as auth,
        neighbours.asset_svc(arrivals) as asset,
    ):
        upstreams = {
            Upstream.AUTH: [auth],
            Upstream.ASSET: [asset],
            Upstream.INGEST: [asset],
            Upstream.TWIN: [asset],
        }
        gateway = start_gateway(mint=mint, arrivals=arrivals, upstreams=upstreams, requests_per_second=1)
        answers = [gateway.http.get("/v1/devices", headers=gateway.bearer) for _ in range(20)]
        limited = next(each for each in answers if each.status_code == 429)
        assert reason(limited) == "RATE_LIMITED"
        assert limited.json()["code"] == 8
        assert detail(limited, "RetryInfo")["retryDelay"] == "1s"
        devices = device_service_pb2_grpc.DeviceServiceStub(gateway.channel)
        codes = []
        for _ in range(20):
            with pytest.raises(grpc.RpcError) as refused:
                devices.ListDevices(device_service_pb2.ListDevicesRequest())
            codes.append(refused.value.code())
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes


def test_a_service_of_several_processes_loses_one_unnoticed(start_gateway: StartGateway) -> None:
    arrivals, mint = Arrivals(), TokenMint()
    (dead,) = free_ports(1)
    with (
        neighbours.auth_svc(arrivals, mint) as auth,
        neighbours.asset_svc(arrivals) as asset,
    ):
        upstreams = {
            Upstream.AUTH: [auth],
            Upstream.ASSET: [dead, asset],
            Upstream.INGEST: [asset],
            Upstream.TWIN: [asset],
        }
        gateway = start_gateway(mint=mint, arrivals=arrivals, upstreams=upstreams)
        gateway.reach(Upstream.AUTH, Upstream.ASSET)
        statuses = {gateway.http.get("/v1/devices", headers=gateway.bearer).status_code for _ in range(20)}
        assert statuses == {200}
        assert gateway.http.get("/healthz/live").status_code == 200
