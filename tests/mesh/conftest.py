import asyncio
import random
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from auth_svc.access_tokens import AccessTokens, Grant
from auth_svc.roles import Role, permissions_of
from auth_svc.signing_keys import KeyRing
from auth_svc.stores.signing_keys import SigningKeyStore
from meshkit import db
from meshkit.clock import MICROS_PER_SECOND, SystemClock
from meshkit.identity import PrincipalKind
from meshkit.testing.auth import bearer
from meshkit.testing.clock import ManualClock
from meshkit.testing.mesh import Mesh, eventually, own_mesh, start_mesh
from tests.mesh.stream_site import SOAK, Site, site


@pytest.fixture(scope="session")
def mesh() -> Iterator[Mesh]:
    """One mesh for all tests of this worker that leave it as it was."""
    home = Path(tempfile.mkdtemp(prefix="twinmesh-mesh-"))
    home.chmod(0o755)
    started = start_mesh(home, OTEL_METRIC_EXPORT_INTERVAL="500")
    yield started
    started.twinmesh("down")
    shutil.rmtree(home, ignore_errors=True)


class LogIns:
    """Access tokens of administrators that last for any test, however long all of them take."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._tokens: dict[str, tuple[str, float]] = {}

    def token(self, tenant: str) -> str:
        """Return an access token with ten minutes left."""
        token, until = self._tokens.get(tenant, ("", 0.0))
        if time.monotonic() >= until:
            if tenant not in self._tokens and tenant != "demo":
                self._mesh.add_tenant(tenant)
            token, until = self._mesh.log_in(tenant=tenant), time.monotonic() + 300
            self._tokens[tenant] = token, until
        return token


@pytest.fixture(scope="session")
def log_ins(mesh: Mesh) -> LogIns:
    """The mesh's administrators."""
    return LogIns(mesh)


@pytest.fixture
def admin_token(log_ins: LogIns) -> str:
    """Access token of the demo tenant's administrator."""
    return log_ins.token("demo")


@pytest.fixture
def rival_token(log_ins: LogIns) -> str:
    """Access token of another tenant's administrator."""
    return log_ins.token("rival")


@pytest.fixture
async def rival(mesh: Mesh, rival_token: str) -> AsyncIterator[httpx.AsyncClient]:
    """JSON client of another tenant's administrator."""
    async with mesh.client(rival_token) as client:
        yield client


@pytest.fixture(scope="module")
def signing_keys(mesh: Mesh) -> KeyRing:
    """auth_svc's own keys as they are now, to sign what auth_svc would not."""

    async def read() -> KeyRing:
        async with db.pool(mesh.role_url("twinmesh_auth"), application="test", max_size=1) as pool:
            ring = KeyRing(
                store=SigningKeyStore(pool=pool),
                mesh_secret=mesh.root_secret,
                life_days=30,
                clock=SystemClock(),
            )
            await ring.refresh()
            return ring

    return asyncio.run(read())


@pytest.fixture(scope="module")
def expired_token(signing_keys: KeyRing) -> str:
    """A token of auth_svc's own key that was good an hour ago."""
    hour_ago = ManualClock(SystemClock().now_us() - 3600 * MICROS_PER_SECOND)
    return AccessTokens(signers=signing_keys, clock=hour_ago).issue(
        Grant(
            tenant="demo",
            subject="admin",
            kind=PrincipalKind.USER,
            permissions=permissions_of(Role.ADMIN),
            credential_id="expired",
            credential_expire_us=None,
            read_us=hour_ago.now_us(),
            role=Role.ADMIN,
        ),
        life_s=900,
    )


@pytest.fixture
async def admin(mesh: Mesh, admin_token: str) -> AsyncIterator[httpx.AsyncClient]:
    """JSON client of the demo tenant's administrator."""
    async with mesh.client(admin_token) as client:
        yield client


@pytest.fixture(scope="session")
def breakable_mesh() -> Iterator[Mesh]:
    """What `fragile_mesh` lends to one test after the other."""
    with own_mesh(TWINMESH_INGEST_PROCESSES="2", OTEL_METRIC_EXPORT_INTERVAL="500") as started:
        yield started


@pytest.fixture(scope="session")
def fragile_key(breakable_mesh: Mesh) -> str:
    """API key of the fragile mesh that may send and read, and does not end."""
    return breakable_mesh.api_key()


@pytest.fixture
def fragile_mesh(breakable_mesh: Mesh, fragile_key: str) -> Iterator[Mesh]:
    """A mesh for tests that break its parts; ingest has two processes."""
    yield breakable_mesh

    def mended() -> bool:
        # The gateway takes a while to believe in a process that did not answer, ready as it may be.
        answers = [
            httpx.get(f"{breakable_mesh.url}{path}", headers=dict(bearer(fragile_key)), timeout=30)
            for path in ("/v1/devices", "/v1/twins", "/v1/ingestPolicy", "/v1/apiKeys")
        ]
        return all(answer.status_code in {200, 403} for answer in answers)

    eventually(lambda: breakable_mesh.status()["ready"], "the mesh is ready again", seconds=120)
    eventually(mended, "the gateway reaches all services again")


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Decides what is random in a test: the same in every run but the soak."""
    seed = secrets.token_hex(8) if SOAK else request.node.name
    request.node.add_report_section("setup", "seed", seed)
    return random.Random(seed)


@pytest.fixture
async def fragile_site(fragile_mesh: Mesh, fragile_key: str, chance: random.Random) -> AsyncIterator[Site]:
    """Devices of one test in the mesh whose parts are broken."""
    async with site(fragile_mesh, fragile_mesh.log_in(), key=fragile_key, chance=chance) as made:
        yield made
