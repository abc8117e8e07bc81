"""A mesh with several processes of ingest_svc, restarted one by one."""

import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from meshkit.testing.mesh import Mesh, eventually, start_mesh

_READINGS = 100


@pytest.fixture(scope="module")
def pair() -> Iterator[Mesh]:
    home = Path(tempfile.mkdtemp(prefix="twinmesh-pair-"))
    home.chmod(0o755)
    started = start_mesh(home, TWINMESH_INGEST_PROCESSES="2")
    yield started
    started.twinmesh("down")
    shutil.rmtree(home, ignore_errors=True)


def _is_ready(mesh: Mesh) -> bool:
    return httpx.get(f"{mesh.url}/healthz/ready", timeout=10).is_success


@contextmanager
def _asking(mesh: Mesh) -> Iterator[Counter[tuple[str, int]]]:
    """Statuses of readiness and of telemetry, asked for without a pause while the context is open."""
    statuses: Counter[tuple[str, int]] = Counter()
    stop = threading.Event()
    headers = {"authorization": f"Bearer {mesh.log_in()}"}

    def ask() -> None:
        with httpx.Client(base_url=mesh.url, headers=headers, timeout=30) as client:
            while not stop.is_set():
                reading = {
                    "deviceId": "temp-1",
                    "time": datetime.now(UTC).isoformat(),
                    "numbers": {"temperature": 1},
                }
                body = {"readings": [reading], "requestId": uuid.uuid4().hex}
                statuses["telemetry", client.post("/v1/telemetry", json=body).status_code] += 1
                statuses["ready", client.get("/healthz/ready").status_code] += 1

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield statuses
    finally:
        stop.set()
        asking.join()


def test_each_process_has_a_port_and_a_log_of_its_own(pair: Mesh) -> None:
    parts = pair.parts("ingest_svc")

    assert [part["name"] for part in parts] == ["ingest_svc", "ingest_svc-2"]
    assert len({part["port"] for part in parts}) == len({part["log"] for part in parts}) == 2
    assert all(Path(part["log"]).is_file() for part in parts)


def test_a_service_restarts_process_by_process_unnoticed(pair: Mesh) -> None:
    before = {part["name"]: part["pid"] for part in pair.parts("ingest_svc")}

    with _asking(pair) as statuses:
        told = pair.twinmesh("restart", "ingest_svc").stdout

    assert [line.split()[0] for line in told.splitlines()] == ["ingest_svc", "ingest_svc-2"]
    after = {part["name"]: part["pid"] for part in pair.parts("ingest_svc")}
    assert not set(before.values()) & set(after.values())
    assert statuses.keys() == {("telemetry", 200), ("ready", 200)}


def test_one_process_alone_can_be_restarted(pair: Mesh) -> None:
    before = {part["name"]: part["pid"] for part in pair.status()["parts"]}

    pair.twinmesh("restart", "ingest_svc-2")

    after = {part["name"]: part["pid"] for part in pair.status()["parts"]}
    assert {name for name in before if before[name] != after[name]} == {"ingest_svc-2"}


def _send_until(
    mesh: Mesh, end_s: float, passed: list[tuple[float, int]], refused: list[dict[str, Any]]
) -> None:
    """Send readings as fast as the limit allows, as a client that obeys it."""
    headers = {"authorization": f"Bearer {mesh.log_in()}"}
    with httpx.Client(base_url=mesh.url, headers=headers, timeout=30) as client:
        while time.monotonic() < end_s:
            now_us = time.time_ns() // 1000
            times = [
                datetime.fromtimestamp((now_us + each) / 1e6, UTC).isoformat() for each in range(_READINGS)
            ]
            readings = [{"deviceId": "temp-1", "time": at, "numbers": {"temperature": 1}} for at in times]
            answer = client.post("/v1/telemetry", json={"readings": readings})
            if answer.status_code == 200:
                passed.append((time.monotonic(), _READINGS))
                continue
            assert answer.status_code == 429, answer.text
            refused.append(answer.json())
            (retry,) = (detail for detail in answer.json()["details"] if "retryDelay" in detail)
            time.sleep(float(retry["retryDelay"].removesuffix("s")))


def test_a_limit_holds_for_both_processes_together_and_says_whom_it_hit(pair: Mesh) -> None:
    rate, seconds = 1_000, 7.0
    pair.twinmesh("login", "--password-stdin", stdin=f"{pair.password}\n")
    shown = pair.twinmesh("limits", "set", "tenant", "--samples", str(rate)).stdout
    assert "tenant_samples_per_second" in shown
    passed: list[tuple[float, int]] = []
    refused: list[dict[str, Any]] = []
    try:
        end_s = time.monotonic() + seconds
        with ThreadPoolExecutor(max_workers=6) as senders:
            for sent in [senders.submit(_send_until, pair, end_s, passed, refused) for _ in range(6)]:
                sent.result()
        used = pair.twinmesh("limits").stdout
    finally:
        pair.twinmesh("limits", "set", "tenant", "--samples", "0")

    # The first seconds do not count: both processes have to learn of the limit.
    steady = sum(count for at_s, count in passed if end_s - 4 <= at_s < end_s)
    assert 0.5 * rate * 4 <= steady <= 1.2 * rate * 4
    info, quota, _ = refused[0]["details"]
    assert (info["reason"], info["metadata"]["limit_name"]) == ("LIMIT_EXCEEDED", "tenant_samples_per_second")
    assert quota["@type"].endswith("google.rpc.QuotaFailure")
    assert quota["violations"][0]["subject"] == "tenant:demo"
    assert "Sent back" in used
    assert "  user:admin: " in used
    assert f"tenant_samples_per_second {rate:,}" in used
    assert "nothing is limited" in pair.twinmesh("limits").stdout


def test_an_unknown_part_is_told_the_known_ones(pair: Mesh) -> None:
    refused = pair.twinmesh("restart", "ingest_svc", "ingest_svc-3", check=False)

    assert refused.returncode == 1
    assert "no part ingest_svc-3" in refused.stderr
    assert "ingest_svc-2" in refused.stderr
    assert refused.stdout == ""


# Last: the gateway needs a moment to believe in processes that hung.
def test_the_mesh_is_ready_while_one_process_hangs(pair: Mesh) -> None:
    pair.signal("ingest_svc-2", signal.SIGSTOP)
    try:
        eventually(lambda: _is_ready(pair), "the other one serves")
        pair.signal("ingest_svc", signal.SIGSTOP)
        try:
            assert not _is_ready(pair)
        finally:
            pair.signal("ingest_svc", signal.SIGCONT)
    finally:
        pair.signal("ingest_svc-2", signal.SIGCONT)
    eventually(lambda: bool(pair.status()["ready"]) and _is_ready(pair), "both answer again")
