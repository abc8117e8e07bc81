"""One PostgreSQL and one NATS for the whole run, shared by all of its workers."""

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from meshkit.embedded import EmbeddedNats, EmbeddedPostgres
from meshkit.testing.auth import TokenMint, fake_auth
from meshkit.testing.database import TestDatabase, build_template, fresh_database
from twinmesh_cli.owners import OWNERS

_SOAK = os.environ.get("TWINMESH_TEST_SCALE") == "soak"

# The same examples in every run but the soak, which looks for new ones.
hypothesis.settings.register_profile("test", max_examples=50, deadline=None, derandomize=True)
hypothesis.settings.register_profile("soak", max_examples=2000, deadline=None)
hypothesis.settings.load_profile("soak" if _SOAK else "test")


class Servers:
    """Servers of one test run; started by the run's first process only."""

    def __init__(self) -> None:
        # World-traversable, since the servers drop to an unprivileged user.
        self._home = Path(tempfile.mkdtemp(prefix="twinmesh-test-"))
        self._home.chmod(0o755)
        self._postgres = EmbeddedPostgres(home=self._home)
        self._nats = EmbeddedNats(home=self._home)

    def start(self) -> dict[str, str]:
        """Start them and return their URLs."""
        self._postgres.start()
        self._nats.start()
        asyncio.run(build_template(self._postgres.admin_url, OWNERS))
        return {
            "admin": self._postgres.admin_url,
            "superuser": self._postgres.superuser_url,
            "nats": self._nats.url,
        }

    def stop(self) -> None:
        """Stop them and forget their data."""
        self._nats.remove()
        self._postgres.remove()
        shutil.rmtree(self._home, ignore_errors=True)


_SERVERS = pytest.StashKey[Servers]()
_URLS = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        config.stash[_URLS] = worker["servers"]
        return
    servers = Servers()
    config.stash[_SERVERS] = servers
    try:
        config.stash[_URLS] = servers.start()
    except BaseException:
        servers.stop()
        raise


def pytest_unconfigure(config: pytest.Config) -> None:
    servers = config.stash.get(_SERVERS, None)
    if servers is not None:
        servers.stop()


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc] # Untyped.
    """Gives each file to one worker, and all files that share a mesh to the same one.

    By path, since xdist 3.8 no longer sees its own marks under pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((mesh for mesh, files in _MESHES.items() if files.fullmatch(file)), file)


_MESHES = {
    "mesh": re.compile(
        r"tests/mesh/test_(applied|archive|audit(_writes)?|bad_input\w*|dead_letters|device_certificates|end_to_end|events|fuzzed_requests|history|key_scopes|load|log_out|metrics|mqtt(_flood)?|openapi|permissions|processing|raw_messages|readme|request_memory|signed_requests|sql_user|tail_and_simulate|tenant_ids|tenant_references|token_attacks|watch)\.py"
    ),
    "fragile mesh": re.compile(r"tests/mesh/test_((\w+_)?faults\w*|rollups|tenant_deletion)\.py"),
}


class _Distribution:
    """Tells xdist's workers where the servers are, and which tests are theirs."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["servers"] = node.config.stash[_URLS]

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> LoadScopeScheduling:
        return _Scheduling(config, log)


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(_Distribution())


@pytest.fixture(scope="session")
def nats_url(pytestconfig: pytest.Config) -> str:
    """The run's NATS; tests keep apart by tenant or subject."""
    return pytestconfig.stash[_URLS]["nats"]


@pytest.fixture(scope="session")
def quiet_nats_url() -> Iterator[str]:
    """A NATS of this worker alone, where nobody else's commits are announced."""
    home = Path(tempfile.mkdtemp(prefix="tm-"))
    home.chmod(0o755)
    server = EmbeddedNats(home=home)
    server.start()
    yield server.url
    server.remove()
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
async def database(pytestconfig: pytest.Config) -> AsyncIterator[TestDatabase]:
    """A fresh, migrated database of this test alone."""
    urls = pytestconfig.stash[_URLS]
    async with fresh_database(admin_url=urls["admin"], superuser_url=urls["superuser"]) as fresh:
        yield fresh


@pytest.fixture
def mint() -> TokenMint:
    """Mints tokens that `auth_address` vouches for."""
    return TokenMint()


@pytest.fixture
async def auth_address(mint: TokenMint) -> AsyncIterator[str]:
    """A stand-in for auth_svc that publishes the mint's key."""
    async with fake_auth(mint) as address:
        yield address


@pytest.fixture
def short_home() -> Iterator[Path]:
    """A folder that servers of other users can reach."""
    home = Path(tempfile.mkdtemp(prefix="tm-"))
    home.chmod(0o755)
    yield home
    shutil.rmtree(home, ignore_errors=True)
