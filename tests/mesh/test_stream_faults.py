"""Parts are killed or stand still while gateways stream: everything acknowledged is stored exactly once."""

import pytest

from tests.mesh.faults import Fault, kill, kill_a_copying_backend, kill_one_of_two, stand_still
from tests.mesh.stream_site import SOAK, Site, sending

pytestmark = pytest.mark.timeout(3600 if SOAK else 300)

FAULTS = 50 if SOAK else 2
CLIENTS = 4


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(kill("ingest_svc"), id="ingest"),
        pytest.param(kill_one_of_two, id="one ingest process"),
        pytest.param(kill("envoy"), id="envoy"),
        pytest.param(kill("postgres"), id="postmaster"),
        pytest.param(kill_a_copying_backend, id="backend in COPY"),
        pytest.param(stand_still(8 if SOAK else 3), id="PostgreSQL stands still"),
        # What ingest needs beside PostgreSQL: the bus, keys, devices.
        pytest.param(kill("nats", "auth_svc", "asset_svc"), id="neighbours"),
    ],
)
async def test_what_is_acknowledged_is_stored_once(fragile_site: Site, fault: Fault) -> None:
    site = fragile_site
    clients = [await site.client(run_length=40) for _ in range(CLIENTS)]
    async with sending(clients):
        for _ in range(FAULTS):
            await site.oracle.progress(site.chance.randint(1, 100))
            await fault(site.mesh, site.chance)
        await site.oracle.progress(50)
    assert site.oracle.everything_acknowledged()
    await site.judge()
