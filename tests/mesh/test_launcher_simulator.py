"""The simulated fleet of `twinmesh up`: there unless one says no, and nothing depends on it."""

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from meshkit.testing.mesh import Mesh, eventually, start_mesh


@pytest.fixture(scope="module")
def lively() -> Iterator[Mesh]:
    """A mesh as people start it."""
    home = Path(tempfile.mkdtemp(prefix="twinmesh-simulator-"))
    home.chmod(0o755)
    mesh = start_mesh(home, TWINMESH_SIMULATE="true")
    yield mesh
    mesh.twinmesh("down", check=False)
    shutil.rmtree(home, ignore_errors=True)


def ask(mesh: Mesh, path: str) -> Any:
    answer = httpx.get(f"{mesh.url}{path}", headers={"authorization": f"Bearer {mesh.log_in()}"}, timeout=30)
    answer.raise_for_status()
    return answer.json()


def last_seen(mesh: Mesh) -> list[str]:
    """Return when each device of the fleet was last heard of, those of whom it was."""
    twins = ask(mesh, "/v1/twins?deviceTypeId=simulated")["twins"]
    return [twin["lastSeenTime"] for twin in twins if twin["id"].startswith("demo-") and twin["metrics"]]


def keys(mesh: Mesh) -> list[str]:
    listed = ask(mesh, "/v1/apiKeys")["apiKeys"]
    return [key["id"] for key in listed if key["displayName"] == "simulated fleet"]


def test_a_fleet_sends_and_goes_on_when_it_was_killed(lively: Mesh) -> None:
    eventually(lambda: len(last_seen(lively)) == 20, "all devices are heard of", seconds=120)
    assert lively.status()["ready"]
    lively.kill("simulator")
    eventually(lambda: lively.part("simulator")["restarts"] == 1, "it is started again")
    heard = max(last_seen(lively))
    eventually(lambda: min(last_seen(lively)) > heard, "all devices are heard of again", seconds=120)
    assert len(last_seen(lively)) == 20


def test_a_start_without_it_and_one_with_it_again(lively: Mesh) -> None:
    (first,) = keys(lively)
    lively.signal("simulator", signal.SIGSTOP)  # Even so the mesh ends.
    lively.twinmesh("down")
    lively.twinmesh("up", "--detach", "--no-simulate")
    assert "simulator" not in {part["name"] for part in lively.status()["parts"]}
    assert lively.status()["ready"]
    lively.twinmesh("down")
    lively.twinmesh("up", "--detach")
    assert lively.part("simulator")["state"] == "ready"
    assert len(keys(lively)) == 1
    assert keys(lively) != [first], "a key that nobody has any more is revoked"
