"""Each kind of bad input gets its documented code and reason, and harms nothing else."""

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from meshkit.testing.auth import TokenMint
from meshkit.testing.mesh import Mesh

READING = {"deviceId": "temp-5", "numbers": {"temperature": 20}}


def reason_of(answer: httpx.Response) -> str:
    body = answer.json()
    assert set(body) >= {"code", "message", "details"}, body
    reason: str = next(
        detail["reason"] for detail in body["details"] if detail["@type"].endswith("ErrorInfo")
    )
    return reason


def fields_of(answer: httpx.Response) -> list[str]:
    return [
        violation["field"]
        for detail in answer.json()["details"]
        if detail["@type"].endswith("BadRequest")
        for violation in detail["fieldViolations"]
    ]


@pytest.mark.parametrize(
    "body",
    [
        "{",
        "",
        "[]",
        '{"readings": 7}',
        '{"readings": [{"deviceId": 7}]}',
        '{"readings": [{"deviceId": "temp-5", "time": "yesterday", "numbers": {"temperature": 1}}]}',
        '{"readings": [{"deviceId": "temp-5", "numbers": {"temperature": "warm"}}]}',
        '{"readings": [{"deviceId": "temp-5", "numbers": {"temperature": "NaN"}}]}',
        '{"readings": [{"deviceId": "temp-5", "numbers": {"temperature": NaN}}]}',
        '{"readings": [{"deviceId": "temp-5", "numbers": {"temperature": "-Infinity"}}]}',
        '{"readings": [{"deviceId": "temp-5", "numbers": {"temperature": 1e400}}]}',
        '{"readings": [{"deviceId": "temp-5", "values": {"n": {"intValue": "92233720368547758080"}}}]}',
        '{"readings": [{"deviceId": "temp-5", "values": {"temperature": {"stringValue": "a\\u0000b"}}}]}',
        '{"readings": []}',
        '{"readings": [{"deviceId": "temp-5", "numbers": {"temperature": 1}}], "sequence": "1"}',
    ],
)
async def test_malformed_telemetry_is_an_invalid_field(admin: httpx.AsyncClient, body: str) -> None:
    answer = await admin.post("/v1/telemetry", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    assert reason_of(answer) == "INVALID_FIELD"


@pytest.mark.parametrize("device_id", ["a/b", "a*", "a>", "a b", "x" * 10_240, "A", "-a", ""])
async def test_a_device_id_that_is_unsafe_is_named(admin: httpx.AsyncClient, device_id: str) -> None:
    answer = await admin.post(
        "/v1/telemetry", json={"readings": [READING, {**READING, "deviceId": device_id}]}
    )
    assert answer.status_code == 400
    assert (reason_of(answer), fields_of(answer)) == ("INVALID_FIELD", ["readings[1].device_id"])
    created = await admin.post("/v1/devices", json={"id": device_id, "deviceTypeId": "temperature-sensor"})
    assert created.status_code == 400
    assert reason_of(created) == "INVALID_FIELD"


async def test_an_integer_above_the_double_range_of_integers_is_a_mismatch(admin: httpx.AsyncClient) -> None:
    kind = f"counter-{uuid.uuid4().hex[:8]}"
    metrics = [{"name": "count", "kind": "VALUE_KIND_INT"}]
    await admin.post("/v1/deviceTypes", json={"id": kind, "metrics": metrics})
    await admin.post("/v1/devices", json={"id": kind, "deviceTypeId": kind})
    answer = await admin.post(
        "/v1/telemetry", json={"readings": [{"deviceId": kind, "numbers": {"count": 2**53 + 2}}]}
    )
    assert answer.json()["refusals"][0]["reason"] == "ERROR_REASON_KIND_MISMATCH", answer.text


@pytest.mark.parametrize("number", ["9007199254740993", '"9007199254740993"'])
async def test_an_integer_above_2_53_is_kept_or_told(admin: httpx.AsyncClient, number: str) -> None:
    kind = f"counter-{uuid.uuid4().hex[:8]}"
    await admin.post(
        "/v1/deviceTypes", json={"id": kind, "metrics": [{"name": "count", "kind": "VALUE_KIND_INT"}]}
    )
    await admin.post("/v1/devices", json={"id": kind, "deviceTypeId": kind})
    body = f'{{"readings": [{{"deviceId": "{kind}", "values": {{"count": {{"intValue": {number}}}}}}}]}}'
    answer = await admin.post("/v1/telemetry", content=body, headers={"content-type": "application/json"})
    assert answer.json()["storedSamples"] == "1", answer.text
    (metric,) = (await admin.get(f"/v1/twins/{kind}/history")).json()["metrics"]
    assert metric["intValues"] == ["9007199254740993"]


@pytest.mark.parametrize(
    "number",
    [
        "9223372036854775808",
        '"9223372036854775808"',
        '"-9223372036854775809"',
        '"9007199254740993.0"',
        "1e400",
        "1.5",
    ],
)
async def test_an_integer_of_more_than_64_bits_is_an_invalid_field(
    admin: httpx.AsyncClient, number: str
) -> None:
    body = f'{{"readings": [{{"deviceId": "temp-5", "values": {{"n": {{"intValue": {number}}}}}}}]}}'
    answer = await admin.post("/v1/telemetry", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, reason_of(answer)) == (400, "INVALID_FIELD")


async def test_bad_input_takes_nothing_else_with_it(admin: httpx.AsyncClient) -> None:
    device, now = f"temp-{uuid.uuid4().hex[:8]}", datetime.now(UTC)
    created = await admin.post("/v1/devices", json={"id": device, "deviceTypeId": "temperature-sensor"})
    assert created.status_code == 200, created.text

    async def send(number: int) -> httpx.Response:
        time = (now - timedelta(seconds=number)).isoformat()
        reading = {"deviceId": device, "time": time, "numbers": {"temperature": number}}
        # Every second request carries something that cannot be stored.
        bad = [{"deviceId": device, "time": time, "numbers": {"temperature": "warm"}}] if number % 2 else []
        return await admin.post("/v1/telemetry", json={"readings": [reading, *bad]})

    answers = await asyncio.gather(*(send(number) for number in range(40)))
    assert [answer.status_code for answer in answers] == [200, 400] * 20
    (metric,) = (await admin.get(f"/v1/twins/{device}/history")).json()["metrics"]
    assert metric["doubleValues"] == [float(number) for number in range(38, -1, -2)]


async def test_too_many_readings_are_refused(admin: httpx.AsyncClient) -> None:
    answer = await admin.post("/v1/telemetry", json={"readings": [READING] * 10_001})
    assert (answer.status_code, reason_of(answer), fields_of(answer)) == (400, "INVALID_FIELD", ["readings"])


async def test_a_body_over_the_limit_is_refused(admin: httpx.AsyncClient) -> None:
    answer = await admin.post("/v1/telemetry", json={"readings": [READING], "requestId": "x" * 4_300_000})
    assert answer.status_code == 413
    assert reason_of(answer) == "BODY_TOO_LARGE"


async def test_what_anybody_may_send_is_smaller(mesh: Mesh, admin_token: str) -> None:
    """The gateway keeps bodies until they are whole, and of whoever has no credential as well."""
    body = {"tenant": "demo", "username": "admin", "password": "x" * 65_536}
    async with mesh.client() as nobody, mesh.client(admin_token) as admin:
        for client in (nobody, admin):
            answer = await client.post("/v1/auth/login", json=body)
            assert (answer.status_code, reason_of(answer)) == (413, "BODY_TOO_LARGE")
        # Of others it is the message that is wrong.
        answer = await admin.post("/v1/devices", json={"id": "x" * 65_536})
        assert (answer.status_code, reason_of(answer)) == (400, "INVALID_FIELD")


async def test_page_size_is_bounded(admin: httpx.AsyncClient) -> None:
    answer = await admin.get("/v1/devices", params={"pageSize": 10**9})
    assert answer.status_code == 200
    assert len(answer.json()["devices"]) == 1000
    assert (await admin.get("/v1/devices", params={"pageSize": -1})).status_code == 400
    for path in ("/v1/twins", "/v1/twins/temp-1/history", "/v1/apiKeys", "/v1/assets"):
        assert (await admin.get(path, params={"pageSize": 10**9})).status_code == 200, path
        for beyond in (-1, 10**10, "many"):
            refused = await admin.get(path, params={"pageSize": beyond})
            assert (refused.status_code, reason_of(refused)) == (400, "INVALID_FIELD"), path
    assert (await admin.get("/v1/devices", params={"pageToken": "nonsense"})).json()["details"][0][
        "reason"
    ] == "PAGE_TOKEN_INVALID"


async def test_a_reversed_time_range_is_refused(admin: httpx.AsyncClient) -> None:
    times = {"startTime": "2026-01-02T00:00:00Z", "endTime": "2026-01-01T00:00:00Z"}
    answer = await admin.get("/v1/twins/temp-1/history", params=times)
    assert (answer.status_code, reason_of(answer)) == (400, "TIME_RANGE_INVALID")
    answer = await admin.post("/v1/backfills", json=times)
    assert (answer.status_code, reason_of(answer)) == (400, "TIME_RANGE_INVALID")


async def test_unknown_routes_and_parameters_have_the_same_shape(admin: httpx.AsyncClient) -> None:
    assert (await admin.get("/v1/nothing")).status_code == 404
    assert reason_of(await admin.get("/v1/nothing"))
    answer = await admin.get("/v1/devices", params={"colour": "red"})
    assert (answer.status_code, reason_of(answer)) == (400, "INVALID_FIELD")


@pytest.mark.parametrize("device_id", ["a%2Fb", "a*", "a%3E", "a%20b", "A", "x" * 10_240])
async def test_a_path_with_an_unsafe_device_id_is_refused(admin: httpx.AsyncClient, device_id: str) -> None:
    for path in (f"/v1/devices/{device_id}", f"/v1/twins/{device_id}", f"/v1/twins/{device_id}/history"):
        answer = await admin.get(path)
        assert (answer.status_code, reason_of(answer)) == (400, "INVALID_FIELD"), answer.text


async def test_another_tenants_device_does_not_exist(
    admin: httpx.AsyncClient, rival: httpx.AsyncClient
) -> None:
    sent = await rival.post("/v1/telemetry", json={"readings": [READING]})
    assert (sent.status_code, sent.json()["storedSamples"]) == (200, "0")
    (refusal,) = sent.json()["refusals"]
    assert refusal["reason"] == "ERROR_REASON_DEVICE_UNKNOWN"
    absent = await rival.post("/v1/telemetry", json={"readings": [{**READING, "deviceId": "no-such"}]})
    told = absent.json()["refusals"][0]["message"].replace("no-such", "temp-5")
    assert refusal["message"] == told, "the answer tells nothing of whose it is"

    for path in ("/v1/devices/temp-5", "/v1/twins/temp-5", "/v1/twins/temp-5/history"):
        answer = await rival.get(path)
        assert (answer.status_code, reason_of(answer)) == (404, "NOT_FOUND"), answer.text
    for change in (rival.patch("/v1/devices/temp-5", json={}), rival.delete("/v1/devices/temp-5")):
        answer = await change
        assert (answer.status_code, reason_of(answer)) == (404, "NOT_FOUND"), answer.text
    assert (await rival.get("/v1/devices")).json()["devices"] == []
    assert (await rival.get("/v1/twins", params={"ids": "temp-5"})).json()["twins"] == []
    token = (await admin.get("/v1/devices", params={"pageSize": 1})).json()["nextPageToken"]
    continued = await rival.get("/v1/devices", params={"pageSize": 1, "pageToken": token})
    assert (continued.status_code, reason_of(continued)) == (400, "PAGE_TOKEN_INVALID")

    metrics = [{"name": "temperature", "kind": "VALUE_KIND_DOUBLE"}]
    await rival.post("/v1/deviceTypes", json={"id": "thermometer", "metrics": metrics})
    taken = await rival.post("/v1/devices", json={"id": "temp-5", "deviceTypeId": "thermometer"})
    assert (taken.status_code, reason_of(taken)) == (409, "ALREADY_EXISTS")
    assert (await admin.get("/v1/devices/temp-5")).json()["deviceTypeId"] == "temperature-sensor"


async def test_another_tenants_key_is_not_found(admin: httpx.AsyncClient, rival: httpx.AsyncClient) -> None:
    created = (await admin.post("/v1/apiKeys", json={"displayName": "test"})).json()
    answer = await rival.delete(f"/v1/apiKeys/{created['id']}")
    assert (answer.status_code, reason_of(answer)) == (404, "NOT_FOUND")
    assert (await rival.get("/v1/apiKeys")).json()["apiKeys"] == []
    assert (await admin.delete(f"/v1/apiKeys/{created['id']}")).status_code == 200


@pytest.mark.parametrize("path", ["/v1/devices", "/v1/twins", "/v1/auth/me", "/v1/apiKeys"])
async def test_tokens_that_are_not_ours_are_refused(mesh: Mesh, expired_token: str, path: str) -> None:
    everything = ["device:read", "twin:read", "api_key:read"]
    tokens = {
        "": "CREDENTIAL_MISSING",
        "nonsense": "TOKEN_INVALID",
        expired_token: "TOKEN_INVALID",
        TokenMint(kid="x").token(tenant="demo", permissions=everything): "TOKEN_INVALID",
        mesh.log_in()[:-4] + "AAAA": "TOKEN_INVALID",
        "tmk_demo_abc_def": "API_KEY_INVALID",
    }
    for token, reason in tokens.items():
        async with mesh.client(token) as client:
            answer = await client.get(path)
            assert (answer.status_code, reason_of(answer)) == (401, reason), answer.text


async def test_a_key_works_until_it_is_revoked(mesh: Mesh, admin: httpx.AsyncClient) -> None:
    created = (await admin.post("/v1/apiKeys", json={"displayName": "test"})).json()
    async with mesh.client(created["secret"]) as machine:
        assert (await machine.get("/v1/auth/me")).json()["kind"] == "api_key"
        assert (await machine.post("/v1/telemetry", json={"readings": [READING]})).status_code == 200
        denied = await machine.get("/v1/apiKeys")
        assert (denied.status_code, reason_of(denied)) == (403, "PERMISSION_MISSING")
        assert (await admin.delete(f"/v1/apiKeys/{created['id']}")).status_code == 200
        refused = await machine.post("/v1/telemetry", json={"readings": [READING]})
        assert (refused.status_code, reason_of(refused)) == (401, "API_KEY_INVALID")
    assert "secret" not in json.dumps((await admin.get("/v1/apiKeys")).json())


async def test_log_in_tells_not_what_was_wrong(mesh: Mesh) -> None:
    answers: list[Any] = []
    async with mesh.client() as nobody:
        for tenant, username in (("demo", "admin"), ("demo", "nobody"), ("nowhere", "admin")):
            body = {"tenant": tenant, "username": username, "password": "wrong"}
            answer = await nobody.post("/v1/auth/login", json=body)
            answers.append((answer.status_code, reason_of(answer), answer.json()["message"]))
    assert answers == [answers[0]] * 3
    assert answers[0][:2] == (401, "LOGIN_FAILED")


async def test_a_session_ends_with_its_log_out(mesh: Mesh) -> None:
    body = {"tenant": "demo", "username": "admin", "password": mesh.password}
    async with mesh.client() as nobody:
        session = (await nobody.post("/v1/auth/login", json=body)).json()
        refreshed = await nobody.post("/v1/auth/refresh", json={"refreshToken": session["refreshToken"]})
        assert refreshed.status_code == 200
        async with mesh.client(refreshed.json()["accessToken"]) as caller:
            assert (await caller.post("/v1/auth/logout", json={})).status_code == 200
        ended = await nobody.post("/v1/auth/refresh", json={"refreshToken": refreshed.json()["refreshToken"]})
        assert (ended.status_code, reason_of(ended)) == (401, "REFRESH_TOKEN_INVALID")
