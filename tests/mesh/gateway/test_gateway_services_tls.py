"""Envoy among the services: who it is to them, and whom it takes for one."""

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import httpx

from gateway.settings import Upstream
from meshkit.ca.identities import Place, write_identity
from meshkit.embedded.account import unprivileged_account
from meshkit.testing import identities
from meshkit.testing.auth import TokenMint
from meshkit.testing.mesh import eventually
from tests.mesh.gateway import neighbours
from tests.mesh.gateway.conftest import Gateway, StartGateway, reason
from tests.mesh.gateway.neighbours import Arrivals

_EXPIRY = "cluster.asset_svc.ssl.certificate.identity.expiration_unix_time_seconds"


def _device(gateway: Gateway) -> httpx.Response:
    return gateway.http.get("/v1/devices/pump-1", headers=gateway.bearer)


def test_a_new_certificate_is_taken_up_without_a_failed_request(gateway: Gateway) -> None:
    assert _device(gateway).is_success
    place = Place(identities.identity_dir("gateway"), unprivileged_account())
    now, life = datetime.now(UTC), timedelta(hours=7)
    write_identity(identities.authority(), "gateway", place, now=now, life=life)
    ends = int((now + life).timestamp())

    def is_shown() -> bool:
        assert _device(gateway).is_success
        return gateway.counted(_EXPIRY) == ends

    eventually(is_shown, "Envoy has the new certificate")


def test_nobody_is_taken_for_another_service(start_gateway: StartGateway) -> None:
    arrivals, mint = Arrivals(), TokenMint()
    with ExitStack() as stack:
        asset = stack.enter_context(neighbours.asset_svc(arrivals))
        gateway = start_gateway(
            mint=mint,
            arrivals=arrivals,
            upstreams={
                Upstream.AUTH: [stack.enter_context(neighbours.auth_svc(arrivals, mint))],
                Upstream.ASSET: [asset],
                Upstream.INGEST: [asset],
                Upstream.TWIN: [asset],
            },
        )
        eventually(lambda: _device(gateway).is_success, "asset_svc answers")
        refused = gateway.http.get("/v1/twins/pump-1", headers=gateway.bearer)
        assert (refused.status_code, reason(refused)) == (503, "DEPENDENCY_UNAVAILABLE")
        assert gateway.counted("cluster.twin_svc.ssl.fail_verify_san") > 0
