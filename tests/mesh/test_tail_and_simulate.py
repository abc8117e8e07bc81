"""`twinmesh simulate` and `tail` as people use them: what one sends, the other sees, and history has."""

import asyncio
import json
import os
import pty
import re
import signal
import uuid
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any

import httpx
import pytest

from meshkit.clock import to_datetime
from meshkit.testing.mesh import Mesh

DEVICES = 5
FAULTY = ("--jitter", "--late", "0.2", "--duplicates", "0.1", "--bad", "0.2", "--seed", "11")
TOTALS = re.compile(
    r"^sent (?P<sent>[\d,]+) samples of 5 devices in [\d.]+ s "
    r"\((?P<late>\d+) late, (?P<twice>\d+) twice, (?P<bad>\d+) bad\): "
    r"(?P<durable>[\d,]+) durable, (?P<refused>[\d,]+) refused \((?P<reasons>.*)\), 0 without an outcome",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def logged_in(mesh: Mesh) -> Mesh:
    mesh.twinmesh("login", "--password-stdin", stdin=f"{mesh.password}\n")
    return mesh


@pytest.fixture
def fleet() -> str:
    """How the ids of one test's devices begin."""
    return f"sim-{uuid.uuid4().hex[:8]}"


def ids_of(fleet: str) -> list[str]:
    return [f"{fleet}-{number:04}" for number in range(1, DEVICES + 1)]


def simulate(mesh: Mesh, fleet: str, *options: str) -> dict[str, int]:
    """Simulate, and return the totals and the reasons of refusals that it tells."""
    shown = mesh.twinmesh("simulate", "--devices", str(DEVICES), "--prefix", fleet, *options).stdout
    found = TOTALS.search(shown)
    assert found is not None, shown
    told = found.groupdict()
    for each in told.pop("reasons").split(", "):
        number, reason = each.split(" ")
        told[reason] = number
    return {name: int(number.replace(",", "")) for name, number in told.items()}


async def stored(admin: httpx.AsyncClient, fleet: str) -> Counter[str]:
    """Return how many samples of each metric history has."""
    counts: Counter[str] = Counter()
    for device in ids_of(fleet):
        answer = await admin.get(f"/v1/twins/{device}/history")
        answer.raise_for_status()
        counts.update({each["metric"]: len(each["times"]) for each in answer.json()["metrics"]})
    return counts


@asynccontextmanager
async def tailing(mesh: Mesh, *arguments: str) -> AsyncIterator[Process]:
    running = await asyncio.create_subprocess_exec(
        *mesh.command("tail", *arguments), env=mesh.environment, stdout=PIPE, stderr=PIPE
    )
    try:
        yield running
    finally:
        with suppress(ProcessLookupError):
            running.kill()
        await running.wait()


async def interrupt(running: Process) -> None:
    """End it as Ctrl-C would: in order, whatever it told before."""
    running.send_signal(signal.SIGINT)
    _, complaints = await running.communicate()
    assert running.returncode == 0
    assert b"Traceback" not in complaints, complaints.decode()


@pytest.mark.parametrize("over", ["stream", "json"])
async def test_totals_add_up_with_history(
    logged_in: Mesh, admin: httpx.AsyncClient, fleet: str, over: str
) -> None:
    told = await asyncio.to_thread(
        simulate, logged_in, fleet, "--rate", "8", "--seconds", "3", "--over", over, *FAULTY
    )
    assert told["sent"] == DEVICES * 8 * 3 + told["twice"]
    assert told["durable"] == told["sent"] - told["bad"]
    reasons = ("KIND_MISMATCH", "METRIC_UNKNOWN", "TIME_OUT_OF_WINDOW")
    assert told["refused"] == told["bad"] == sum(told[reason] for reason in reasons)
    assert min(told["late"], told["twice"], *(told[reason] for reason in reasons)) > 0
    counts = await stored(admin, fleet)
    assert counts.keys() == {"temperature", "pressure", "speed", "starts", "state", "location"}
    assert counts.total() == told["durable"] - told["twice"], "equal samples show once"


async def temperatures(admin: httpx.AsyncClient, fleet: str) -> dict[int, list[float]]:
    """Return each device's stored temperatures in order of size."""
    of_fleet = {}
    for number, device in enumerate(ids_of(fleet)):
        history = (await admin.get(f"/v1/twins/{device}/history?metrics=temperature")).json()["metrics"]
        # Late samples lie elsewhere, so that the order of times is not the same.
        of_fleet[number] = sorted(history[0]["doubleValues"]) if history else []
    return of_fleet


async def test_a_seed_sends_the_same_by_every_door(
    logged_in: Mesh, admin: httpx.AsyncClient, fleet: str
) -> None:
    fleets = {over: f"{fleet}-{over}" for over in ("stream", "json", "mqtt")}
    for over, name in fleets.items():
        options = ("--devices", str(DEVICES), "--prefix", name, "--rate", "8", "--seconds", "3", *FAULTY)
        await asyncio.to_thread(logged_in.twinmesh, "simulate", "--over", over, *options)
    sent = await temperatures(admin, fleets["stream"])
    assert all(sent.values())
    assert await temperatures(admin, fleets["json"]) == sent
    # By MQTT the broker answers, which is before it is stored.
    async with asyncio.timeout(30):
        while await temperatures(admin, fleets["mqtt"]) != sent:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.1)


async def test_a_simulation_over_mqtt_leaves_no_key_behind(
    logged_in: Mesh, admin: httpx.AsyncClient, fleet: str
) -> None:
    before = (await admin.get("/v1/apiKeys")).json()["apiKeys"]
    options = ("--devices", str(DEVICES), "--prefix", fleet, "--rate", "8", "--seconds", "1")
    shown = await asyncio.to_thread(logged_in.twinmesh, "simulate", "--over", "mqtt", *options)
    assert f"sent {DEVICES * 8} samples" in shown.stdout
    assert f"{DEVICES * 8} durable, refusals are not told, 0 without an outcome" in shown.stdout
    assert (await admin.get("/v1/apiKeys")).json()["apiKeys"] == before


async def latest(admin: httpx.AsyncClient, fleet: str) -> dict[tuple[str, str], datetime]:
    """Return the latest time of each metric that history has."""
    found = {}
    for device in ids_of(fleet):
        answer = await admin.get(f"/v1/twins/{device}/history")
        answer.raise_for_status()
        for each in answer.json()["metrics"]:
            found[device, each["metric"]] = to_datetime(int(each["times"][-1]))
    return found


async def next_value(running: Process) -> dict[str, Any]:
    """Return the next value; a busy machine may make devices seem offline in between, and leave a gap."""
    assert running.stdout is not None
    while (line := json.loads(await running.stdout.readline()))["event"] in {"connectivity", "gap"}:
        pass
    assert line["event"] == "value", line
    return {**line, "time": datetime.fromisoformat(line["time"])}


async def test_tail_tells_what_is_simulated(logged_in: Mesh, admin: httpx.AsyncClient, fleet: str) -> None:
    await asyncio.to_thread(simulate, logged_in, fleet, "--rate", "8", "--seconds", "2", *FAULTY)
    before = await latest(admin, fleet)
    async with tailing(logged_in, "--json", "--interval", "0", *ids_of(fleet)) as running:
        seen: dict[tuple[str, str], datetime] = {}
        # What is known already comes first, then what changes.
        while seen != before:
            line = await next_value(running)
            seen[line["device"], line["metric"]] = line["time"]
            assert line["unit"] == {"temperature": "°C", "pressure": "bar", "speed": "1/min"}.get(
                line["metric"], ""
            )
        await asyncio.to_thread(simulate, logged_in, fleet, "--rate", "8", "--seconds", "2", *FAULTY)
        after = await latest(admin, fleet)
        assert {device for device, metric in after if after[device, metric] > before[device, metric]} == set(
            ids_of(fleet)
        )
        while seen != after:
            line = await next_value(running)
            seen[line["device"], line["metric"]] = line["time"]
            assert line["online"] is True
        await interrupt(running)


async def test_tail_tells_what_enters_and_what_leaves(
    logged_in: Mesh, admin: httpx.AsyncClient, fleet: str
) -> None:
    async with tailing(logged_in, "--json", "--metric", "temperature", fleet) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert b"no device fits so far" in await running.stderr.readline()
        made = await admin.post("/v1/devices", json={"id": fleet, "deviceTypeId": "temperature-sensor"})
        made.raise_for_status()
        reading = {"deviceId": fleet, "numbers": {"temperature": 20.5, "humidity": 40}}
        (await admin.post("/v1/telemetry", json={"readings": [reading]})).raise_for_status()
        line = await next_value(running)
        assert (line["device"], line["metric"], line["value"]) == (fleet, "temperature", 20.5)
        (await admin.delete(f"/v1/devices/{fleet}")).raise_for_status()
        assert json.loads(await running.stdout.readline()) == {"event": "leave", "device": fleet}
        await interrupt(running)


async def test_a_terminal_shows_tables_and_ctrl_c_ends_them(logged_in: Mesh, fleet: str) -> None:
    simulated = await _on_a_terminal(
        logged_in, "simulate", "--devices", "5", "--prefix", fleet, until=("connected", "durable")
    )
    assert re.search(r"sent [\d,]+ samples of 5 devices in .* 0 without an outcome", simulated)
    tailed = await _on_a_terminal(
        logged_in, "tail", *ids_of(fleet), until=(f"{fleet}-0001", "online", "5 devices")
    )
    assert "Traceback" not in simulated + tailed


async def _on_a_terminal(mesh: Mesh, *arguments: str, until: tuple[str, ...]) -> str:
    """Run a command on a terminal until it shows something, press Ctrl-C, and return all that it showed."""
    controller, terminal = pty.openpty()
    running = await asyncio.create_subprocess_exec(
        *mesh.command(*arguments),
        env={**mesh.environment, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    shown = b""

    def read() -> bytes:
        # A terminal that nobody has open any more fails instead of ending.
        with suppress(OSError):
            return os.read(controller, 65536)
        return b""

    try:
        while not all(text.encode() in shown for text in until):
            more = await asyncio.to_thread(read)
            assert more, shown.decode()
            shown += more
        running.send_signal(signal.SIGINT)
        while more := await asyncio.to_thread(read):
            shown += more
        assert await running.wait() == 0, shown.decode()
    finally:
        with suppress(ProcessLookupError):
            running.kill()
        await running.wait()
        os.close(controller)
    return shown.decode()


def test_what_a_user_can_mend_is_told(logged_in: Mesh, fleet: str, rival_token: str) -> None:
    for command in (["tail", "--json"], ["simulate", "--devices", "1"]):
        stranger = Mesh(
            logged_in.home,
            logged_in.port,
            {**logged_in.environment, "TWINMESH_CREDENTIALS": "/nowhere/credentials.json"},
            "",
        ).twinmesh(*command, check=False)
        assert (stranger.returncode, stranger.stdout) == (1, "")
        assert "run `twinmesh login`" in stranger.stderr
    invalid = logged_in.twinmesh("tail", "Temp 1", check=False)
    assert invalid.returncode == 1
    assert "INVALID_ARGUMENT" in invalid.stderr
    assert "ids" in invalid.stderr
    taken = httpx.post(
        f"{logged_in.url}/v1/devices",
        headers={"authorization": f"Bearer {rival_token}"},
        json={"id": f"{fleet}-0001", "deviceTypeId": rival_type(logged_in, rival_token)},
        timeout=30,
    )
    taken.raise_for_status()
    refused = logged_in.twinmesh("simulate", "--devices", "1", "--prefix", fleet, check=False)
    assert refused.returncode == 1
    assert "choose other ids with --prefix" in refused.stderr
    for told in (invalid, refused):
        assert "Traceback" not in told.stderr


def rival_type(mesh: Mesh, token: str) -> str:
    """Make a device type in the rival's tenant."""
    name = f"type-{uuid.uuid4().hex[:8]}"
    httpx.post(
        f"{mesh.url}/v1/deviceTypes",
        headers={"authorization": f"Bearer {token}"},
        json={"id": name},
        timeout=30,
    ).raise_for_status()
    return name
