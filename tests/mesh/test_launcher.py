"""`twinmesh up`, `down` and `status` as people use them, on the whole mesh."""

import contextlib
import os
import pty
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import pytest

from meshkit.embedded import free_ports, is_port_free
from meshkit.testing.mesh import Mesh, eventually, start_mesh

_PARTS = {
    "postgres",
    "nats",
    "otlp",
    "auth_svc",
    "asset_svc",
    "ingest_svc",
    "twin_svc",
    "maintenance",
    "envoy",
}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A long path below a folder that only its owner may enter."""
    top = Path(tempfile.mkdtemp(prefix="twinmesh-launcher-"))
    home = top / "a clone with a rather long name and blanks in it" / ("and-one-more-" * 8)
    home.mkdir(parents=True)
    yield home
    for link in home.rglob("*"):
        if link.is_symlink():
            shutil.rmtree(link.resolve())
    shutil.rmtree(top)


@pytest.fixture(scope="module")
def first_start(folder: Path) -> Iterator[Mesh]:
    mesh = start_mesh(folder)
    yield mesh
    mesh.twinmesh("down", check=False)


@pytest.fixture
def own_mesh(first_start: Mesh) -> Mesh:
    """A running mesh that the test may do anything to; the next test starts it again if need be."""
    if not first_start.status()["ready"]:
        first_start.twinmesh("up", "--detach")
    return first_start


def _pids(mesh: Mesh) -> dict[str, int]:
    return {part["name"]: part["pid"] for part in mesh.status()["parts"]}


def _lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def _launcher(mesh: Mesh) -> psutil.Process:
    process = psutil.Process(_pids(mesh)["auth_svc"]).parent()
    assert process is not None
    return process


def test_all_parts_are_ready_below_a_closed_folder_and_down_leaves_nothing(own_mesh: Mesh) -> None:
    pids = _pids(own_mesh)
    assert set(pids) == _PARTS
    assert own_mesh.twinmesh("status").returncode == 0
    assert httpx.get(f"{own_mesh.url}/healthz/ready", timeout=10).status_code == 200

    own_mesh.twinmesh("down")

    assert not [name for name, pid in pids.items() if _lives(pid)]
    assert own_mesh.twinmesh("status", check=False).returncode == 1
    assert is_port_free(own_mesh.port)
    # Nothing to stop is no failure.
    assert own_mesh.twinmesh("down").stdout.strip() == "nothing is running"


def test_every_part_comes_back_when_it_is_killed(own_mesh: Mesh) -> None:
    before = _pids(own_mesh)
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)

    def all_back() -> bool:
        status = own_mesh.status()
        return bool(status["ready"]) and all(part["restarts"] >= 1 for part in status["parts"])

    eventually(all_back, "every part is back", seconds=150)
    assert not set(before.values()) & set(_pids(own_mesh).values())
    assert own_mesh.log_in()


def test_a_killed_launcher_takes_all_with_it_and_the_next_one_finds_the_data(own_mesh: Mesh) -> None:
    token = own_mesh.log_in()
    created = httpx.post(
        f"{own_mesh.url}/v1/assets",
        headers={"authorization": f"Bearer {token}"},
        json={"id": "kept", "displayName": "Kept", "assetTypeId": "hvac"},
        timeout=30,
    )
    assert created.status_code == 200, created.text
    pids = _pids(own_mesh)
    _launcher(own_mesh).kill()
    eventually(lambda: not any(_lives(pid) for pid in pids.values()), "all parts are gone")
    assert own_mesh.status()["running"] is False

    own_mesh.twinmesh("up", "--detach")

    token = own_mesh.log_in()
    kept = httpx.get(
        f"{own_mesh.url}/v1/assets/kept", headers={"authorization": f"Bearer {token}"}, timeout=30
    )
    assert kept.json()["displayName"] == "Kept"


def test_what_a_killed_launcher_could_not_end_is_ended_by_the_next_down(own_mesh: Mesh) -> None:
    pids = _pids(own_mesh)
    # A stopped process takes no signal but the last one.
    os.kill(pids["twin_svc"], signal.SIGSTOP)
    _launcher(own_mesh).kill()
    eventually(lambda: not _lives(pids["envoy"]), "the gateway is gone")
    assert _lives(pids["twin_svc"])

    told = own_mesh.twinmesh("down")

    assert "twin_svc" in told.stdout
    assert not _lives(pids["twin_svc"])


def test_a_second_launcher_is_told_and_another_home_runs_beside(own_mesh: Mesh, folder: Path) -> None:
    again = own_mesh.twinmesh("up", "--detach", check=False)
    assert again.returncode == 1
    assert "is running already" in again.stderr

    mqtt_port, device_port = free_ports(2)
    beside = {
        **own_mesh.environment,
        "TWINMESH_HOME": str(folder / "beside"),
        "TWINMESH_MQTT_PORT": str(mqtt_port),
        "TWINMESH_DEVICE_PORT": str(device_port),
    }
    same_port = Mesh(folder / "beside", own_mesh.port, beside, own_mesh.password)
    refused = same_port.twinmesh("up", "--detach", check=False)
    assert refused.returncode == 1
    assert "TWINMESH_GATEWAY_PORT" in refused.stderr

    (port,) = free_ports(1)
    other = Mesh(folder / "beside", port, {**beside, "TWINMESH_GATEWAY_PORT": str(port)}, own_mesh.password)
    try:
        other.twinmesh("up", "--detach")
        assert other.status()["ready"] is True
        assert own_mesh.status()["ready"] is True
    finally:
        other.twinmesh("down", check=False)
    assert own_mesh.status()["ready"] is True


def test_what_the_launcher_is_told_reaches_the_gateway_and_the_services(own_mesh: Mesh, folder: Path) -> None:
    origin = "https://app.example"
    other = start_mesh(
        folder / "told",
        TWINMESH_CORS_ORIGINS=f"https://else.example, {origin}",
        TWINMESH_GATEWAY_REQUESTS_PER_SECOND="20",
        TWINMESH_LATE_WINDOW_DAYS="1",
        TWINMESH_FUTURE_WINDOW_MINUTES="120",
    )
    try:
        now = datetime.now(UTC)
        times = [now - timedelta(hours=25), now - timedelta(hours=23), now + timedelta(hours=1)]
        answer = httpx.post(
            f"{other.url}/v1/telemetry",
            headers={"authorization": f"Bearer {other.log_in()}", "origin": origin},
            json={
                "readings": [
                    {"deviceId": "temp-1", "time": time.isoformat(), "numbers": {"temperature": 1}}
                    for time in times
                ]
            },
            timeout=30,
        )
        assert answer.headers["access-control-allow-origin"] == origin
        refusals = [(each.get("readingIndex", 0), each["reason"]) for each in answer.json()["refusals"]]
        assert refusals == [(0, "ERROR_REASON_TIME_OUT_OF_WINDOW")], answer.text
        with httpx.Client(base_url=other.url, timeout=30) as client:
            codes = {client.get("/healthz/live").status_code for _ in range(200)}
        assert codes == {200, 429}
    finally:
        other.twinmesh("down", check=False)


def test_interrupt_on_a_terminal_stops_everything_in_order(own_mesh: Mesh) -> None:
    own_mesh.twinmesh("down")
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        own_mesh.command("up"),
        env=own_mesh.environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    ) as launcher:
        os.close(terminal)
        shown = b""
        while b"Ctrl-C stops it" not in shown:
            shown += os.read(controller, 65536)
        pids = _pids(own_mesh)
        launcher.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # The terminal's end.
            while chunk := os.read(controller, 65536):
                shown += chunk
        assert launcher.wait(timeout=60) == 0
    os.close(controller)

    assert set(pids) == _PARTS
    assert not [name for name, pid in pids.items() if _lives(pid)]
    for name in _PARTS:
        assert name.encode() in shown


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        (
            "TWINMESH_DATABASE_URL",
            "postgresql://nobody:secret-word@127.0.0.1:1/none",
            "TWINMESH_DATABASE_URL",
        ),
        ("TWINMESH_NATS_URL", "nats://nobody:secret-word@127.0.0.1:1", "TWINMESH_NATS_URL"),
        ("TWINMESH_BIND", "198.51.100.1", "TWINMESH_GATEWAY_PORT"),
    ],
)
def test_what_cannot_be_used_is_named_without_its_secrets(
    setting: str, value: str, named: str, folder: Path
) -> None:
    with pytest.raises(AssertionError) as failure:
        start_mesh(folder / setting, **{setting: value})

    assert named in str(failure.value)
    assert "secret-word" not in str(failure.value)
    home = str(folder / setting)
    assert not [
        process for process in psutil.process_iter(["cmdline"]) if home in str(process.info["cmdline"])
    ]


def test_given_servers_are_used_instead_of_embedded_ones(own_mesh: Mesh, folder: Path, nats_url: str) -> None:
    """The database of one mesh serves another launcher as an external one."""
    port, mqtt_port, device_port = free_ports(3)
    environment = {
        **own_mesh.environment,
        "TWINMESH_HOME": str(folder / "guest"),
        "TWINMESH_GATEWAY_PORT": str(port),
        "TWINMESH_MQTT_PORT": str(mqtt_port),
        "TWINMESH_DEVICE_PORT": str(device_port),
        "TWINMESH_DATABASE_URL": own_mesh.database_url(),
        "TWINMESH_DATABASE_DATA_DIR": str(own_mesh.home),
        "TWINMESH_NATS_URL": nats_url,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{own_mesh.part('otlp')['port']}",
        # Passwords of roles come from it, and the roles are the same ones.
        "TWINMESH_MESH_SECRET": (own_mesh.home / "secrets" / "mesh").read_text(),
    }
    guest = Mesh(folder / "guest", port, environment, own_mesh.password)
    try:
        guest.twinmesh("up", "--detach")
        pids = _pids(guest)
        assert set(pids) == _PARTS - {"postgres", "nats", "otlp"}
        told = psutil.Process(pids["maintenance"]).environ()
        assert told["TWINMESH_DATABASE_DATA_DIR"] == str(own_mesh.home)
        assert guest.log_in()
    finally:
        guest.twinmesh("down", check=False)
