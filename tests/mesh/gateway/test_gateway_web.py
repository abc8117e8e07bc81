"""A real gRPC-Web client, on Node in place of a browser, watches twins through Envoy."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.contract import CONTRACT
from tests.mesh.gateway.conftest import Gateway
from tests.mesh.gateway.neighbours import HELD

_CLIENT = Path(__file__).with_name("web_client")
_BIN = Path(sys.executable).parent


@pytest.fixture(scope="session")
def web_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the client's packages, in the versions of its lock file."""
    folder = tmp_path_factory.mktemp("web_client")
    shutil.copytree(_CLIENT, folder, dirs_exist_ok=True)
    subprocess.run(
        [_BIN / "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=120,
    )
    return folder / "watch.mjs"


class Page:
    """A web page that watches."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def hears(self) -> dict[str, Any]:
        """Return what it hears next."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, "the page is gone"
        heard: dict[str, Any] = json.loads(line)
        return heard

    async def leave(self) -> None:
        """Close it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()


@asynccontextmanager
async def page(script: Path, gateway: Gateway, *, token: str, **request: Any) -> AsyncIterator[Page]:
    process = await asyncio.create_subprocess_exec(
        _BIN / "node",
        script,
        f"http://127.0.0.1:{gateway.port}",
        token,
        CONTRACT,
        json.dumps(request),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    opened = Page(process)
    try:
        yield opened
    finally:
        await opened.leave()


async def test_events_come_one_by_one_and_a_page_that_leaves_ends_the_call(
    web_client: Path, gateway: Gateway
) -> None:
    gateway.arrivals.left.clear()
    async with page(web_client, gateway, token=gateway.token, ids=[HELD], interval="0.5s") as opened:
        # The stream goes on, and all that was sent is here.
        heard = [await opened.hears() for _ in range(3)]
        assert heard == [{"bookmark": {"resumeToken": str(number)}} for number in range(3)]
        assert not gateway.arrivals.left.is_set()
        assert gateway.arrivals.requests[-1].interval.ToMilliseconds() == 500
    assert await asyncio.to_thread(gateway.arrivals.left.wait, 30)


async def test_a_stream_that_ends_says_so(web_client: Path, gateway: Gateway) -> None:
    async with page(web_client, gateway, token=gateway.token) as opened:
        heard = [await opened.hears() for _ in range(4)]
    assert heard[-1] == {"ended": True}


async def test_a_refusal_is_a_code_with_its_reason(web_client: Path, gateway: Gateway) -> None:
    async with page(web_client, gateway, token="") as opened:
        assert await opened.hears() == {"failed": "Unauthenticated", "reasons": ["CREDENTIAL_MISSING"]}
