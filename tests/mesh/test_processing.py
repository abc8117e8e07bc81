"""What a device type says of its metrics, done to samples from every door."""

import asyncio
import math
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import aiomqtt
import grpc
import httpx

from meshkit.clock import SystemClock
from meshkit.testing.auth import bearer
from meshkit.testing.mesh import Mesh
from tests.rpc.ingest.streaming import Client
from twinmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from twinmesh.type.v1.value_pb2 import VALUE_KIND_DOUBLE


async def make_pump(admin: httpx.AsyncClient, **metric: Any) -> str:
    """Make a device whose only metric is a temperature that comes in °F; returns its id."""
    name = f"pump-{uuid.uuid4().hex[:8]}"
    temperature = {
        "name": "temperature",
        "kind": "VALUE_KIND_DOUBLE",
        "unit": "°C",
        "deviceUnit": "°F",
        "aliases": ["t1"],
        "minimum": 0,
        "maximum": 100,
        **metric,
    }
    for path, resource in (
        ("/v1/deviceTypes", {"id": name, "metrics": [temperature]}),
        ("/v1/devices", {"id": name, "deviceTypeId": name}),
    ):
        answer = await admin.post(path, json=resource)
        assert answer.status_code == 200, answer.text
    return name


async def send(admin: httpx.AsyncClient, device: str, *samples: tuple[int, dict[str, float]]) -> Any:
    """Send samples of (seconds from now, values by metric) in one request."""
    now = datetime.now(UTC)
    readings = [
        {"deviceId": device, "time": (now + timedelta(seconds=second)).isoformat(), "numbers": numbers}
        for second, numbers in samples
    ]
    answer = await admin.post("/v1/telemetry", json={"readings": readings})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def history(admin: httpx.AsyncClient, device: str) -> Any:
    answer = await admin.get(f"/v1/twins/{device}/history", params={"includeQuality": "true"})
    assert answer.status_code == 200, answer.text
    (metric,) = answer.json()["metrics"]
    return metric


async def test_units_aliases_ranges_and_quality_by_json(admin: httpx.AsyncClient) -> None:
    pump = await make_pump(admin, interval="1s", maxRate=2)
    sent = await send(
        admin,
        pump,
        (-40, {"temperature": 212}),
        (-39, {"t1": 213.8}),  # 101 °C
        (-29, {"t1": 32}),  # 100 °C less, ten seconds later
    )
    assert (sent["storedSamples"], sent["refusals"]) == ("3", [])
    found = await history(admin, pump)
    assert [round(value, 6) for value in found["doubleValues"]] == [100, 101, 0]
    assert (found["metric"], found["unit"]) == ("temperature", "°C")
    quality = found["quality"]
    assert quality["validity"] == [100, 0, 100]
    assert quality["completeness"] == [100, 100, 10]
    assert quality["consistency"] == [100, 100, 15]  # 2 of 10.1 °C/s, in steps of 5 %
    assert quality["timeliness"] == [100] * 3
    assert quality["scores"] == [100, 75, 56]
    assert quality["anomalous"] == [False] * 3
    twin = (await admin.get(f"/v1/twins/{pump}")).json()
    assert twin["metrics"]["temperature"]["qualityScore"] == 56


async def test_a_change_of_the_type_is_live_on_an_open_stream(admin: httpx.AsyncClient, mesh: Mesh) -> None:
    pump = await make_pump(admin)
    async with grpc.aio.insecure_channel(mesh.address) as channel:
        stub = ingest_service_pb2_grpc.IngestServiceStub(channel)
        client = Client(stub.StreamTelemetry(metadata=bearer(mesh.log_in())))
        await client.open(f"w-{uuid.uuid4().hex}")
        await client.send(
            series_defs=ingest_service_pb2.SeriesDefs(
                defs=[
                    ingest_service_pb2.SeriesDef(
                        alias=alias, device_id=pump, metric="t1", kind=VALUE_KIND_DOUBLE, unit=unit
                    )
                    for alias, unit in enumerate(["", "K"])
                ]
            )
        )
        now_us = SystemClock().now_us()
        await client.batch(
            1,
            ingest_service_pb2.Columns(
                series=[0, 1], run_lengths=[1, 1], times=[now_us, now_us + 1], double_values=[50.0, 283.15]
            ),
        )
        await client.durable(1)
        found = await history(admin, pump)
        assert [round(value, 6) for value in found["doubleValues"]] == [10, 10]

        refusing = {
            "name": "temperature",
            "kind": "VALUE_KIND_DOUBLE",
            "unit": "°C",
            "aliases": ["t1"],
            "maximum": 20,
            "rangePolicy": "RANGE_POLICY_REFUSE",
        }
        answer = await admin.patch(
            f"/v1/deviceTypes/{pump}", params={"updateMask": "metrics"}, json={"metrics": [refusing]}
        )
        assert answer.status_code == 200, answer.text
        async with asyncio.timeout(60):
            for sequence in range(2, 1_000):
                await client.batch(
                    sequence,
                    ingest_service_pb2.Columns(
                        series=[0], run_lengths=[1], times=[now_us + sequence], double_values=[50.0]
                    ),
                )
                if results := await client.durable(sequence):
                    break
                await asyncio.sleep(0.05)
        (refusal,) = results[0].refusals
        assert (
            refusal.message
            == "metric 'temperature' is from -inf to 20 °C; its type refuses other values, such as 50"
        )
        await client.close()


async def test_messages_by_mqtt_are_processed_alike(admin: httpx.AsyncClient, mesh: Mesh) -> None:
    pump = await make_pump(admin)
    async with aiomqtt.Client(
        "127.0.0.1", mesh.mqtt_port, username=pump, password=mesh.api_key(), identifier=pump
    ) as client:
        await client.publish(f"devices/{pump}/telemetry", b'{"t1": 50}', qos=1)
    async with asyncio.timeout(20):
        while not (await admin.get(f"/v1/twins/{pump}")).json()["metrics"]:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
    state = (await admin.get(f"/v1/twins/{pump}")).json()["metrics"]["temperature"]
    assert (round(state["value"]["doubleValue"], 6), state["unit"], state["qualityScore"]) == (10, "°C", 100)


async def test_history_tells_which_assets_a_device_was_on(admin: httpx.AsyncClient) -> None:
    pump, suffix = await make_pump(admin), uuid.uuid4().hex[:8]
    halls = [f"hall-{number}-{suffix}" for number in range(2)]
    for path, resource in (
        ("/v1/assetTypes", {"id": halls[0]}),
        (
            "/v1/assets",
            {"id": halls[0], "assetTypeId": halls[0], "location": {"latitude": 1, "longitude": 2}},
        ),
        ("/v1/assets", {"id": halls[1], "assetTypeId": halls[0]}),
    ):
        assert (await admin.post(path, json=resource)).status_code == 200

    async def placements() -> list[tuple[str, float | None]]:
        answer = (await admin.get(f"/v1/twins/{pump}/history")).json()
        return [
            (place["assetId"], place.get("location", {}).get("latitude")) for place in answer["placements"]
        ]

    expected: list[tuple[str, float | None]] = []
    for hall, latitude in ((halls[0], 1), (halls[1], None), (halls[1], 5), ("", None)):
        if hall == halls[1] and latitude is not None:
            change: dict[str, Any] = {"location": {"latitude": latitude, "longitude": 2}}
            answer = await admin.patch(f"/v1/assets/{hall}", params={"updateMask": "location"}, json=change)
        else:
            change = {"assetId": hall}
            answer = await admin.patch(f"/v1/devices/{pump}", params={"updateMask": "assetId"}, json=change)
        assert answer.status_code == 200, answer.text
        expected.append((hall, latitude))
        async with asyncio.timeout(20):
            while await placements() != expected:
                await send(admin, pump, (0, {"temperature": 50}))
                await asyncio.sleep(0.1)


async def test_metrics_that_do_not_fit_each_other_are_anomalies(admin: httpx.AsyncClient, mesh: Mesh) -> None:
    name = f"pump-{uuid.uuid4().hex[:8]}"
    alone = {"disabled": True}  # Each by itself is never one.
    metrics = [
        {"name": metric, "kind": "VALUE_KIND_DOUBLE", "anomaly": alone} for metric in ("flow", "pressure")
    ]
    together = {"metrics": ["flow", "pressure"], "warmUp": 160}
    for path, resource in (
        ("/v1/deviceTypes", {"id": name, "metrics": metrics, "jointAnomaly": together}),
        ("/v1/devices", {"id": name, "deviceTypeId": name}),
    ):
        answer = await admin.post(path, json=resource)
        assert answer.status_code == 200, answer.text

    def row(second: int, factor: float) -> tuple[int, dict[str, float]]:
        flow = math.sin(second) + 0.1 * math.sin(7.3 * second)
        return -300 + second, {"flow": flow, "pressure": factor * flow + 0.1 * math.cos(3.1 * second)}

    rows = [row(second, 2) for second in range(240)] + [row(second, -2) for second in range(240, 260)]
    await send(admin, name, *rows)
    mesh.twinmesh("login", "--password-stdin", stdin=f"{mesh.password}\n")
    shown = mesh.twinmesh("query", name, "--quality", "--as", "csv").stdout.splitlines()
    assert shown[0].split(",")[-1] == "anomaly"
    anomalous = [line.split(",")[1] for line in shown[1:] if line.endswith(",yes")]
    assert anomalous.count("flow") == anomalous.count("pressure") > 0
    found = (await admin.get(f"/v1/twins/{name}/history", params={"includeQuality": "true"})).json()
    for metric in found["metrics"]:
        flagged = [place for place, is_one in enumerate(metric["quality"]["anomalous"]) if is_one]
        assert set(flagged) <= set(range(240, 260))


async def test_a_receipt_is_shown_on_the_command_line(admin: httpx.AsyncClient, mesh: Mesh) -> None:
    pump, request_id = await make_pump(admin, rangePolicy="RANGE_POLICY_REFUSE"), uuid.uuid4().hex
    readings = [{"deviceId": pump, "numbers": numbers} for numbers in ({"temperature": 50}, {"t1": 500})]
    answer = await admin.post("/v1/telemetry", json={"readings": readings, "requestId": request_id})
    assert answer.status_code == 200, answer.text
    mesh.twinmesh("login", "--password-stdin", stdin=f"{mesh.password}\n")
    shown = mesh.twinmesh("receipt", "--request-id", request_id).stdout
    assert "COMMITTED" in shown
    assert "VALUE_OUT_OF_RANGE" in shown
    assert "such as 260" in " ".join(shown.split())
    assert "UNKNOWN" in mesh.twinmesh("receipt", "--request-id", "never-sent").stdout


async def test_what_is_unlike_everything_before_is_an_anomaly(admin: httpx.AsyncClient) -> None:
    pump = await make_pump(admin)
    usual = [(-300 + second, {"t1": 70.0 + second % 5}) for second in range(200)]
    await send(admin, pump, *usual, (-50, {"t1": 150}), (-49, {"t1": 71}))
    found = await history(admin, pump)
    assert [index for index, anomalous in enumerate(found["quality"]["anomalous"]) if anomalous] == [200]
