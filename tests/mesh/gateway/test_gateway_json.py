"""JSON through the gateway: what a request arrives as, and what it is answered."""

import json
from typing import Any

import pytest

from tests.mesh.gateway.conftest import MAX_JSON_BODY_BYTES, Gateway, detail, reason
from tests.mesh.gateway.neighbours import GOOD_KEY
from twinmesh.asset.v1.device_service_pb2 import Device, UpdateDeviceRequest


def test_defaults_are_printed_and_int64_is_a_string(gateway: Gateway) -> None:
    answer = gateway.http.post("/v1/telemetry", headers=gateway.bearer, json={"readings": [{}]})
    assert answer.status_code == 200
    assert answer.json()["storedSamples"] == "1"
    assert answer.json()["duplicate"] is False


def test_large_integers_arrive_exactly(gateway: Gateway) -> None:
    for written in (9007199254740993, "9007199254740993"):
        body = {"readings": [{"deviceId": "a", "values": {"count": {"intValue": written}}}]}
        assert gateway.http.post("/v1/telemetry", headers=gateway.bearer, json=body).status_code == 200
        assert gateway.arrivals.requests[-1].readings[0].values["count"].int_value == 9007199254740993


def test_unknown_body_fields_are_ignored(gateway: Gateway) -> None:
    answer = gateway.http.post(
        "/v1/telemetry", headers=gateway.bearer, json={"readings": [], "unknownField": 1}
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("query", "body", "mask"),
    [
        pytest.param("", {"displayName": "y"}, [], id="no mask is made from the body"),
        pytest.param(
            "?updateMask=displayName,tags", {"displayName": "y"}, ["display_name", "tags"], id="mask in query"
        ),
        pytest.param("", {"id": "x", "displayName": "y"}, [], id="the id may be repeated in the body"),
    ],
)
def test_patch_arrives_as(gateway: Gateway, query: str, body: dict[str, Any], mask: list[str]) -> None:
    answer = gateway.http.patch(f"/v1/devices/x{query}", headers=gateway.bearer, json=body)
    assert answer.status_code == 200
    expected = UpdateDeviceRequest(device=Device(id="x", display_name="y"))
    if mask:
        expected.update_mask.paths.extend(mask)
    assert gateway.arrivals.requests[-1] == expected


def test_patch_of_another_id_is_refused(gateway: Gateway) -> None:
    answer = gateway.http.patch("/v1/devices/x", headers=gateway.bearer, json={"id": "z"})
    assert answer.status_code == 400
    assert reason(answer) == "INVALID_FIELD"


def test_delete_takes_the_etag_from_the_query(gateway: Gateway) -> None:
    assert gateway.http.delete("/v1/devices/x?etag=v1", headers=gateway.bearer).json() == {}
    arrived = gateway.arrivals.requests[-1]
    assert (arrived.id, arrived.etag) == ("x", "v1")


def test_custom_verbs(gateway: Gateway) -> None:
    answer = gateway.http.post(
        "/v1/devices:batchCreate", headers=gateway.bearer, json={"devices": [{"id": "q"}]}
    )
    assert answer.json()["devices"][0]["id"] == "q"


def test_repeated_query_parameters_are_repeated_not_split(gateway: Gateway) -> None:
    path = "/v1/twins/d/history"
    gateway.http.get(path, headers=gateway.bearer, params={"metrics": ["a", "b"], "pageSize": "5"})
    assert list(gateway.arrivals.requests[-1].metrics) == ["a", "b"]
    assert gateway.arrivals.requests[-1].page_size == 5
    gateway.http.get(f"{path}?metrics=a,b", headers=gateway.bearer)
    assert list(gateway.arrivals.requests[-1].metrics) == ["a,b"]


def test_plus_in_a_query_is_a_space(gateway: Gateway) -> None:
    gateway.http.get("/v1/devices?search=cold+room", headers=gateway.bearer)
    assert gateway.arrivals.requests[-1].search == "cold room"


@pytest.mark.parametrize("device", ["a%2Fb", "a%20b", "*", "%3E", "a" * 10_000])
def test_odd_ids_reach_the_services_own_rules(gateway: Gateway, device: str) -> None:
    assert gateway.http.get(f"/v1/devices/{device}", headers=gateway.bearer).status_code == 200
    written = {"a%2Fb": "a/b", "a%20b": "a b", "%3E": ">"}.get(device, device)
    assert gateway.arrivals.requests[-1].id == written


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("{bad", id="malformed"),
        pytest.param("[]", id="no object"),
        pytest.param('{"readings": 5}', id="wrong type"),
        pytest.param('{"readings": [{"deviceId": 5}]}', id="number for string"),
        pytest.param('{"readings": [{"numbers": {"t": NaN}}]}', id="NaN"),
        pytest.param('{"readings": [{"numbers": {"t": 1e400}}]}', id="1e400"),
        pytest.param('{"readings": [{"values": {"t": {"intValue": 9223372036854775808}}}]}', id="2^63"),
        pytest.param('{"readings": [{"time": "yesterday"}]}', id="bad time"),
        pytest.param('{"mode": "MODE_UNHEARD_OF"}', id="bad enum"),
        pytest.param('{"requestId": "a"', id="cut off"),
    ],
)
def test_unreadable_bodies(gateway: Gateway, body: str) -> None:
    before = len(gateway.arrivals.requests)
    answer = gateway.http.post("/v1/telemetry", headers=gateway.bearer, content=body)
    assert answer.status_code == 400
    assert reason(answer) == "INVALID_FIELD"
    assert answer.json()["code"] == 3
    assert answer.json()["message"].removeprefix("the request cannot be read: ")
    assert len(gateway.arrivals.requests) == before


@pytest.mark.parametrize("query", ["bogus=1", "pageSize=many", "pageSize=99999999999", "role=KING"])
def test_unreadable_queries(gateway: Gateway, query: str) -> None:
    answer = gateway.http.get(f"/v1/devices?{query}", headers=gateway.bearer)
    assert answer.status_code == 400
    assert reason(answer) == "INVALID_FIELD"
    assert query.split("=", maxsplit=1)[0].lower() in answer.json()["message"].replace("_", "")


def test_large_bodies_are_refused_before_any_service(gateway: Gateway) -> None:
    readings = [{"deviceId": "a"}] * (MAX_JSON_BODY_BYTES // 10)
    before = len(gateway.arrivals.requests)
    answer = gateway.http.post("/v1/telemetry", headers=gateway.bearer, json={"readings": readings})
    assert answer.status_code == 413
    assert reason(answer) == "BODY_TOO_LARGE"
    login = gateway.http.post("/v1/auth/login", json={"password": "x" * MAX_JSON_BODY_BYTES})
    assert login.status_code == 413
    assert len(gateway.arrivals.requests) == before
    fits = json.dumps({"readings": readings[: MAX_JSON_BODY_BYTES // 20]})
    assert len(fits) < MAX_JSON_BODY_BYTES
    assert gateway.http.post("/v1/telemetry", headers=gateway.bearer, content=fits).status_code == 200


def test_large_headers_are_refused(gateway: Gateway) -> None:
    answer = gateway.http.get("/v1/devices", headers={**gateway.bearer, "x-large": "x" * 30_000})
    assert answer.status_code == 431
    assert answer.json()["details"][0]["reason"] == "BODY_TOO_LARGE"


def test_headers_that_only_the_token_for_an_api_key_makes_too_large(gateway: Gateway) -> None:
    key = {"authorization": f"Bearer {GOOD_KEY}"}
    longer = [{"x-large": "x" * size} for size in range(23_000, 25_000, 100)]
    more = [{f"x-{each}": "" for each in range(count)} for count in range(80, 100)]
    for series in (longer, more):
        answers = [gateway.http.get("/v1/devices", headers=key | headers) for headers in series]
        assert {answer.status_code for answer in answers} == {200, 431}
        refused = [answer.json() for answer in answers if answer.status_code == 431]
        assert {each["details"][0]["reason"] for each in refused} == {"BODY_TOO_LARGE"}


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/nothing"), ("PUT", "/v1/devices"), ("GET", "/")])
def test_unknown_routes(gateway: Gateway, method: str, path: str) -> None:
    answer = gateway.http.request(method, path, headers=gateway.bearer)
    assert answer.status_code == 404
    assert reason(answer) == "ROUTE_NOT_FOUND"


def test_errors_of_services_keep_their_details(gateway: Gateway) -> None:
    absent = gateway.http.get("/v1/devices/absent", headers=gateway.bearer)
    assert (absent.status_code, absent.json()["code"]) == (404, 5)
    assert reason(absent) == "NOT_FOUND"
    assert detail(absent, "ErrorInfo")["metadata"] == {"resource": "device", "id": "absent"}
    wrong = gateway.http.get("/v1/devices/wrong", headers=gateway.bearer)
    assert wrong.status_code == 400
    assert detail(wrong, "BadRequest")["fieldViolations"][0]["field"] == "id"
    away = gateway.http.get("/v1/devices/away", headers=gateway.bearer)
    assert away.status_code == 503
    assert detail(away, "RetryInfo")["retryDelay"] == "1s"


def test_health_is_public_and_names_what_is_away(gateway: Gateway) -> None:
    assert gateway.http.get("/healthz/live").json() == {"status": "ok"}
    ready = gateway.http.get("/healthz/ready")
    assert ready.status_code == 503
    assert reason(ready) == "DEPENDENCY_UNAVAILABLE"
    assert detail(ready, "ErrorInfo")["metadata"] == {"dependency": "nats"}


def test_a_deadline_in_a_header_is_kept(gateway: Gateway) -> None:
    answer = gateway.http.get("/v1/assets/slow", headers={**gateway.bearer, "grpc-timeout": "300m"})
    assert answer.status_code == 504
    assert answer.json()["code"] == 4
