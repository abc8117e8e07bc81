"""Signed requests through Envoy: what is signed counts, once, and nothing else does."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import httpx
import pytest

from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import AuthApp, behind_envoy, refusal, running_auth, until
from twinmesh.auth.v1 import api_key_service_pb2 as pb
from twinmesh.auth.v1 import api_key_service_pb2_grpc, session_service_pb2, session_service_pb2_grpc
from twinmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc
from twinmesh.twin.v1 import twin_service_pb2, twin_service_pb2_grpc
from twinmesh_client import RequestSigner, SigningInterceptor

_INVALID = (401, "SIGNATURE_INVALID")
_PATH = "/v1/apiKeys"
_BODY = json.dumps({"displayName": "made by a signed request", "permissions": ["twin:read"]}).encode()


@dataclass(frozen=True)
class Site:
    """auth_svc behind Envoy, and a key with its signing secret."""

    auth: AuthApp
    client: httpx.AsyncClient
    key: pb.CreateApiKeyResponse

    @property
    def signer(self) -> RequestSigner:
        """Signs with the key."""
        return RequestSigner(self.key.signing_secret)

    async def send(self, authorization: str, method: str, path: str, body: bytes = b"") -> tuple[int, str]:
        """Send a request; returns status and reason, "" without one."""
        headers = {"authorization": authorization, "content-type": "application/json"}
        answer = await self.client.request(method, path, content=body, headers=headers)
        details = answer.json().get("details", [{}]) if answer.content else [{}]
        return answer.status_code, details[0].get("reason", "")

    async def signed(self, method: str, path: str, body: bytes = b"", **signer: Any) -> tuple[int, str]:
        """Send a request as it is signed."""
        secret = signer.pop("secret", self.key.signing_secret)
        authorization = RequestSigner(secret, **signer).authorization(method, path, body)
        return await self.send(authorization, method, path, body)

    async def new_key(self, **fields: Any) -> pb.CreateApiKeyResponse:
        """Make a key that may manage keys."""
        request = pb.CreateApiKeyRequest(
            **{
                "display_name": "signs",
                "permissions": ["api_key:write", "api_key:read", "twin:read"],
                **fields,
            }
        )
        made: pb.CreateApiKeyResponse = await self.auth.api_keys.CreateApiKey(
            request, metadata=await self.auth.as_user()
        )
        return made

    def channel(self, *interceptors: Any) -> grpc.aio.Channel:
        """Return a channel to Envoy."""
        url = self.client.base_url
        return grpc.aio.insecure_channel(f"{url.host}:{url.port}", interceptors=interceptors)


@pytest.fixture
def uses_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon."""
    monkeypatch.setattr("auth_svc.app.machines._USES_EVERY_S", 0.1)


@pytest.fixture
async def site(database: TestDatabase, short_home: Path) -> AsyncIterator[Site]:
    async with running_auth(database) as auth, behind_envoy(auth, short_home / "envoy") as client:
        bare = Site(auth, client, pb.CreateApiKeyResponse())
        yield Site(auth, client, await bare.new_key())


async def test_signed_requests_are_the_keys_in_json(site: Site) -> None:
    assert await site.signed("POST", _PATH, _BODY) == (200, "")
    me = await site.client.get(
        "/v1/auth/me", headers={"authorization": site.signer.authorization("GET", "/v1/auth/me")}
    )
    assert (me.status_code, me.json()["subject"]) == (200, site.key.id)
    made = await site.new_key()
    assert await site.signed("DELETE", f"/v1/apiKeys/{made.id}") == (200, "")
    listed = await site.client.get(
        "/v1/apiKeys", headers={"authorization": site.signer.authorization("GET", "/v1/apiKeys")}
    )
    assert "made by a signed request" in listed.text
    assert "signingSecret" not in listed.text


async def test_signed_calls_are_the_keys_in_grpc(site: Site) -> None:
    async with site.channel(SigningInterceptor(site.signer)) as channel:
        me: Any = session_service_pb2_grpc.SessionServiceStub(channel)
        assert (await me.GetMe(session_service_pb2.GetMeRequest())).subject == site.key.id
        keys: Any = api_key_service_pb2_grpc.ApiKeyServiceStub(channel)
        made = await keys.CreateApiKey(
            pb.CreateApiKeyRequest(display_name="ä" * 100, permissions=["twin:read"])
        )
        assert made.api_key.creator == f"api_key:{site.key.id}"


async def test_what_signs_counts_as_used(uses_are_written: None, site: Site) -> None:
    refused = await site.new_key()
    assert await site.signed("GET", _PATH, secret=refused.signing_secret[:-4] + "0000") == _INVALID
    assert await site.signed("GET", _PATH) == (200, "")

    async def is_told() -> bool:
        request = pb.ListApiKeysRequest()
        keys = (await site.auth.api_keys.ListApiKeys(request, metadata=await site.auth.as_user())).api_keys
        return [key.id for key in keys if key.HasField("last_used_time")] == [site.key.id]

    await until(is_told)


async def _rows(database: TestDatabase, query: str) -> Sequence[Any]:
    connection = await asyncpg.connect(database.admin_url)
    try:
        rows: Sequence[Any] = await connection.fetch(query)
        return rows
    finally:
        await connection.close()


def _replaced(name: str, value: str) -> Callable[[str], str]:
    def change(authorization: str) -> str:
        before, _, rest = authorization.partition(f'{name}="')
        return f'{before}{name}="{value}"{rest[rest.index(chr(34)) + 1 :]}'

    return change


_MAKE = ("POST", _PATH, _BODY)
_LIST = ("GET", f"{_PATH}?pageSize=7", b"")
_Request = tuple[str, str, bytes]


@pytest.mark.parametrize(
    ("signed", "sent"),
    [
        (_MAKE, ("POST", _PATH, _BODY.replace(b"twin:read", b"api_key:read"))),
        (_MAKE, ("POST", _PATH, b"")),
        (_MAKE, ("POST", _PATH, _BODY + b" ")),
        (_MAKE, ("POST", f"{_PATH}?pageSize=7", _BODY)),
        (_MAKE, ("POST", f"{_PATH}/{'0' * 16}:rotate", _BODY)),
        (_MAKE, ("POST", f"/v1/auth/../../{_PATH}/../users", _BODY)),
        (_MAKE, ("GET", _PATH, _BODY)),
        (_LIST, ("GET", _PATH, b"")),
        (_LIST, ("GET", f"{_PATH}?pageSize=8", b"")),
        (_LIST, ("GET", f"{_PATH}?pageSize=7&pageToken=", b"")),
        (_LIST, ("GET", f"{_PATH}?pageSize=7", b" ")),
        (_LIST, ("DELETE", f"{_PATH}?pageSize=7", b"")),
    ],
)
async def test_another_request_than_the_signed_one_is_refused(
    site: Site, signed: _Request, sent: _Request
) -> None:
    authorization = site.signer.authorization(*signed)
    assert await site.send(authorization, *sent) == _INVALID
    # The signature is not used up: what was signed is good still.
    assert await site.send(authorization, *signed) == (200, "")


async def test_a_changed_signature_is_refused(site: Site) -> None:
    other = await site.new_key()
    other_name = other.signing_secret.removeprefix("tms_").rpartition("_")[0]
    other_digest = RequestSigner(other.signing_secret).authorization("POST", _PATH, b"").split('"')[5]
    now = datetime.now(UTC)
    for change in (
        _replaced("key", other_name),
        _replaced("key", "demo_nobody"),
        _replaced("key", f"other_{site.key.id}"),
        _replaced("key", f"demo_{site.key.id}-2"),
        _replaced("key", f"demo_{site.key.id}-1"),
        _replaced("date", f"{now + timedelta(seconds=1):%Y-%m-%dT%H:%M:%SZ}"),
        _replaced("date", "2026-13-45T25:61:61Z"),
        _replaced("digest", other_digest),
        _replaced("signature", "0" * 64),
        lambda text: text.replace("signature", "sig"),
        lambda text: text + ",",
        lambda text: text.replace("digest=", "digest ="),
        lambda _: "TM1-HMAC-SHA256 x",
        lambda _: "TM1-HMAC-SHA256 " + "x" * 10_000,
    ):
        changed = change(site.signer.authorization("POST", _PATH, _BODY))
        assert await site.send(changed, "POST", _PATH, _BODY) == _INVALID, changed
    # Another key's secret for this one's name.
    forged = RequestSigner(other.signing_secret.replace(other.id, site.key.id))
    assert await site.send(forged.authorization("POST", _PATH, _BODY), "POST", _PATH, _BODY) == _INVALID


async def test_a_digest_of_another_body_that_is_signed_is_refused(site: Site) -> None:
    """Who signs an empty body does not sign what comes with it."""
    authorization = site.signer.authorization("POST", _PATH, b"")
    assert await site.send(authorization, "POST", _PATH, _BODY) == _INVALID


@pytest.mark.parametrize(
    ("off", "answer"),
    [
        (-310, (401, "SIGNATURE_DATE_INVALID")),
        (310, (401, "SIGNATURE_DATE_INVALID")),
        (-280, (200, "")),
        (280, (200, "")),
    ],
)
async def test_dates_may_be_five_minutes_off(site: Site, off: int, answer: tuple[int, str]) -> None:
    def now() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=off)

    assert await site.signed("POST", _PATH, _BODY, now=now) == answer


async def test_a_signature_counts_once(site: Site) -> None:
    authorization = site.signer.authorization("POST", _PATH, _BODY)
    sent = [site.send(authorization, "POST", _PATH, _BODY) for _ in range(10)]
    assert sorted(await asyncio.gather(*sent)) == [(200, ""), *[(401, "SIGNATURE_REPLAYED")] * 9]
    # By gRPC as well, in words.
    path = "/twinmesh.auth.v1.SessionService/GetMe"
    metadata = (("authorization", site.signer.authorization("POST", path, bytes(5))),)
    async with site.channel() as channel:
        me: Any = session_service_pb2_grpc.SessionServiceStub(channel)
        await me.GetMe(session_service_pb2.GetMeRequest(), metadata=metadata)
        refused = await refusal(me.GetMe(session_service_pb2.GetMeRequest(), metadata=metadata))
    assert refused == (grpc.StatusCode.UNAUTHENTICATED, "SIGNATURE_REPLAYED")


async def test_signatures_are_known_to_every_process_and_are_forgotten(
    site: Site, database: TestDatabase, short_home: Path
) -> None:
    authorization = site.signer.authorization("POST", _PATH, _BODY)
    assert await site.send(authorization, "POST", _PATH, _BODY) == (200, "")
    async with (
        running_auth(database) as other,
        behind_envoy(other, short_home / "other") as client,
    ):
        elsewhere = Site(other, client, site.key)
        assert await elsewhere.send(authorization, "POST", _PATH, _BODY) == (401, "SIGNATURE_REPLAYED")
    await site.auth.sql("UPDATE auth.signed_request SET expire_time = now() - interval '1 second'")

    async def are_forgotten() -> bool:
        return not await _rows(database, "SELECT FROM auth.signed_request")

    await until(are_forgotten)


async def test_a_revoked_or_rotated_key_signs_no_more(site: Site) -> None:
    assert await site.signed("POST", _PATH, _BODY) == (200, "")
    request = pb.RotateApiKeyRequest(id=site.key.id)
    request.overlap.seconds = 0
    rotated = await site.auth.api_keys.RotateApiKey(request, metadata=await site.auth.as_user())
    assert rotated.signing_secret != site.key.signing_secret
    assert await site.signed("POST", _PATH, _BODY) == _INVALID
    assert await site.signed("POST", _PATH, _BODY, secret=rotated.signing_secret) == (200, "")
    await site.auth.api_keys.DeleteApiKey(
        pb.DeleteApiKeyRequest(id=site.key.id), metadata=await site.auth.as_user()
    )
    assert await site.signed("POST", _PATH, _BODY, secret=rotated.signing_secret) == _INVALID


async def test_a_suspended_tenants_key_is_told_so_if_it_signs_well(site: Site) -> None:
    await site.auth.sql("UPDATE auth.tenant SET suspend_time = now() WHERE tenant_id = 'demo'")
    assert await site.signed("POST", _PATH, _BODY) == (403, "TENANT_SUSPENDED")
    forged = site.key.signing_secret[:-1] + ("0" if site.key.signing_secret[-1] != "0" else "1")
    assert await site.signed("POST", _PATH, _BODY, secret=forged) == _INVALID


async def test_a_keys_networks_hold_for_what_it_signs(site: Site) -> None:
    elsewhere = await site.new_key(allowed_addresses=["203.0.113.0/24"])
    answer = await site.signed("POST", _PATH, _BODY, secret=elsewhere.signing_secret)
    assert answer == (403, "ADDRESS_NOT_ALLOWED")


async def test_streams_are_refused_in_words(site: Site) -> None:
    for path in ("/v1/twins:watch", "/v1/history:export?ids=a", "/v1/auditEvents:export"):
        assert await site.signed("GET", path) == (401, "SIGNATURE_NOT_FOR_STREAMS"), path
    wanted = (grpc.StatusCode.UNAUTHENTICATED, "SIGNATURE_NOT_FOR_STREAMS")
    async with site.channel() as channel:
        path = "/twinmesh.ingest.v1.IngestService/StreamTelemetry"
        metadata = (("authorization", site.signer.authorization("POST", path)),)
        ingest: Any = ingest_service_pb2_grpc.IngestServiceStub(channel)
        stream = ingest.StreamTelemetry(metadata=metadata, timeout=30)
        # It stays open: nothing says that its body has ended.
        await stream.write(ingest_service_pb2.StreamTelemetryRequest())
        assert await refusal(stream.read()) == wanted
        path = "/twinmesh.twin.v1.TwinService/WatchTwins"
        metadata = (("authorization", site.signer.authorization("POST", path, bytes(5))),)
        twins: Any = twin_service_pb2_grpc.TwinServiceStub(channel)
        watch = twins.WatchTwins(twin_service_pb2.WatchTwinsRequest(), metadata=metadata, timeout=30)
        assert await refusal(watch.read()) == wanted


@pytest.mark.parametrize(
    ("size", "answer"), [(3_900_000, "DEPENDENCY_UNAVAILABLE"), (4_200_000, "BODY_TOO_LARGE")]
)
async def test_bodies_of_almost_4_mib_are_signed(site: Site, size: int, answer: str) -> None:
    """The first passes; ingest_svc is not there."""
    reading = ingest_service_pb2.Reading(device_id="a")
    reading.values["text"].string_value = "x" * size
    async with site.channel(SigningInterceptor(site.signer)) as channel:
        ingest: Any = ingest_service_pb2_grpc.IngestServiceStub(channel)
        request = ingest_service_pb2.IngestTelemetryRequest(readings=[reading])
        _, reason = await refusal(ingest.IngestTelemetry(request, timeout=30))
    assert reason == answer


async def test_public_rpcs_ask_for_no_signature(site: Site) -> None:
    assert await site.send("TM1-HMAC-SHA256 nonsense", "GET", "/.well-known/jwks.json") == (200, "")


async def test_no_secret_of_a_key_is_stored(site: Site, database: TestDatabase) -> None:
    secrets = [each.rpartition("_")[2] for each in (site.key.secret, site.key.signing_secret)]
    await site.signed("POST", _PATH, _BODY)
    for table in ("api_key", "api_key_former_secret", "signed_request", "revocation"):
        rows: Sequence[Any] = await _rows(database, f"SELECT t::text FROM auth.{table} AS t")
        assert not any(secret in str(row) for row in rows for secret in secrets)
