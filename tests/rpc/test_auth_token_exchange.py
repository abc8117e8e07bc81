"""Token exchange through Envoy, with an issuer that the test runs."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from auth_svc.roles import Role
from meshkit.testing.database import TestDatabase
from meshkit.testing.http import Answer
from tests.rpc.auth_app import AuthApp, behind_envoy, running_auth, until
from tests.rpc.oidc_issuer import KEYS, STRANGER, OidcIssuer, oidc_issuer, public_jwk

_JWT = "urn:ietf:params:oauth:token-type:jwt"
_ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"


@pytest.fixture
async def issuer() -> AsyncIterator[OidcIssuer]:
    async with oidc_issuer() as running:
        yield running


@pytest.fixture
async def auth(
    database: TestDatabase, issuer: OidcIssuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[AuthApp]:
    monkeypatch.setattr("auth_svc.app.people.RELOAD_EVERY_S", 0.05)
    path = issuer.write(tmp_path / "issuers.yaml")
    async with running_auth(database, issuers=path, outbound_allowed="127.0.0.1") as running:
        yield running


@pytest.fixture
async def client(auth: AuthApp, short_home: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with behind_envoy(auth, short_home) as opened:
        yield opened


async def _exchange(client: httpx.AsyncClient, token: str, **changes: str) -> httpx.Response:
    body = {"grant_type": _GRANT, "subject_token": token, "subject_token_type": _JWT, **changes}
    return await client.post("/v1/auth/token", json=body)


def _reason(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["details"][0]["reason"]


async def _verdict(client: httpx.AsyncClient, token: str) -> tuple[int, str]:
    return _reason(await _exchange(client, token))


_INVALID = (401, "SUBJECT_TOKEN_INVALID")


@pytest.mark.parametrize("kid", KEYS)
async def test_a_token_of_the_issuer_is_exchanged_for_one_of_ours(
    client: httpx.AsyncClient, issuer: OidcIssuer, kid: str
) -> None:
    answer = await _exchange(client, issuer.token(kid), requested_token_type=_ACCESS_TOKEN)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told.keys() == {"access_token", "issued_token_type", "token_type", "expires_in"}
    assert (told["issued_token_type"], told["token_type"]) == (_ACCESS_TOKEN, "Bearer")
    claims = jwt.decode(told["access_token"], options={"verify_signature": False})
    assert told["expires_in"] == claims["exp"] - claims["nbf"] == 900
    me = await client.get("/v1/auth/me", headers={"authorization": f"Bearer {told['access_token']}"})
    assert me.status_code == 200, me.text
    assert (me.json()["tenant"], me.json()["subject"]) == ("demo", "corp/ada")
    assert (me.json()["kind"], me.json()["role"]) == ("federated", "operator")


async def test_what_it_may_do_is_its_role_s_as_the_file_says_now(
    client: httpx.AsyncClient, issuer: OidcIssuer, tmp_path: Path
) -> None:
    async def listing_keys() -> int:
        told = (await _exchange(client, issuer.token(groups="everybody"))).json()
        bearer = {"authorization": f"Bearer {told['access_token']}"}
        return (await client.get("/v1/apiKeys", headers=bearer)).status_code

    assert await listing_keys() == 403
    issuer.write(tmp_path / "issuers.yaml", role={"claim": "groups", "values": {"everybody": "admin"}})

    async def promoted() -> bool:
        return await listing_keys() == 200

    await until(promoted)
    (tmp_path / "issuers.yaml").write_text("issuers: []")

    async def dismissed() -> bool:
        return (await _exchange(client, issuer.token())).status_code == 401

    await until(dismissed)


async def test_it_ends_when_its_tenant_is_revoked_and_another_begins_anew(
    client: httpx.AsyncClient, auth: AuthApp, issuer: OidcIssuer
) -> None:
    async def me(token: str) -> httpx.Response:
        return await client.get("/v1/auth/me", headers={"authorization": f"Bearer {token}"})

    token = (await _exchange(client, issuer.token())).json()["access_token"]
    assert (await me(token)).status_code == 200
    await auth.sql(
        """
        INSERT INTO auth.revocation (tenant_id, kind, id, revoke_time, until_time)
        VALUES ('demo', 'tenant', 'demo', clock_timestamp(), clock_timestamp() + interval '17 minutes')
        """
    )

    async def is_refused() -> bool:
        return not (await me(token)).is_success

    await until(is_refused)
    assert _reason(await me(token)) == (401, "TOKEN_REVOKED")
    anew = (await _exchange(client, issuer.token())).json()["access_token"]
    assert (await me(anew)).status_code == 200


async def test_nothing_is_exchanged_into_a_suspended_tenant(
    client: httpx.AsyncClient, auth: AuthApp, issuer: OidcIssuer
) -> None:
    await auth.add_user("system", "operator", Role.INSTALLATION_ADMIN)
    operator = {"authorization": f"Bearer {(await auth.login('system', 'operator')).access_token}"}
    suspended = await client.post("/v1/tenants/demo:suspend", headers=operator, json={})
    assert suspended.status_code == 200, suspended.text
    assert await _verdict(client, issuer.token()) == (403, "TENANT_SUSPENDED")
    # Only who has a good token is told.
    assert await _verdict(client, issuer.token(key=STRANGER)) == _INVALID
    assert (await client.post("/v1/tenants/demo:resume", headers=operator, json={})).status_code == 200
    assert (await _exchange(client, issuer.token())).status_code == 200
    assert (await client.post("/v1/tenants/demo:suspend", headers=operator, json={})).status_code == 200
    deletion = f"/v1/tenants/demo?exportDigest={'0' * 64}"
    assert (await client.delete(deletion, headers=operator)).status_code == 200
    # As when there is no such tenant.
    assert await _verdict(client, issuer.token()) == (403, "SUBJECT_NOT_MAPPED")


async def test_the_account_of_it_is_the_subject_s(
    client: httpx.AsyncClient, auth: AuthApp, issuer: OidcIssuer
) -> None:
    token = issuer.token()
    assert (await _exchange(client, token)).status_code == 200
    admin = {"authorization": f"Bearer {(await auth.login()).access_token}"}

    async def events() -> list[dict[str, Any]]:
        asked = await client.get("/v1/auditEvents?principal=federated:corp/ada", headers=admin)
        assert asked.status_code == 200, asked.text
        found: list[dict[str, Any]] = asked.json().get("auditEvents", [])
        return found

    await until(events)
    (event,) = await events()
    assert (event["rpc"], event["tenant"]) == ("/twinmesh.auth.v1.TokenService/ExchangeToken", "demo")
    assert token not in str(event)


async def test_it_ends_with_the_token_that_was_exchanged(
    client: httpx.AsyncClient, issuer: OidcIssuer
) -> None:
    ends = int(time.time()) + 60
    told = (await _exchange(client, issuer.token(exp=ends))).json()
    claims = jwt.decode(told["access_token"], options={"verify_signature": False})
    assert claims["exp"] == claims["cred_exp"] == ends


async def test_a_subject_cannot_log_out_a_user_of_the_same_name(
    client: httpx.AsyncClient, auth: AuthApp, issuer: OidcIssuer
) -> None:
    session = (await auth.login()).access_token
    told = (await _exchange(client, issuer.token(sub="admin"))).json()
    out = await client.post(
        "/v1/auth/logout", json={}, headers={"authorization": f"Bearer {told['access_token']}"}
    )
    assert _reason(out) == (404, "NOT_FOUND")
    me = await client.get("/v1/auth/me", headers={"authorization": f"Bearer {session}"})
    assert me.status_code == 200


# Times in seconds from now.
_WRONG_TIMES = ({"exp": -10}, {"nbf": 600}, {"iat": 600})
_WRONG_CLAIMS: list[dict[str, Any]] = [
    {"iss": "https://somebody.example.com"},
    {"iss": None},
    {"iss": ["x"]},
    {"aud": "another-program"},
    {"aud": None},
    {"exp": None},
    {"exp": "soon"},
    {"exp": float("inf")},
    {"nbf": float("inf")},
    {"iat": float("nan")},
    {"aud": 7},
    {"aud": [["twinmesh"]]},
]


async def test_a_wrong_claim_is_refused(client: httpx.AsyncClient, issuer: OidcIssuer) -> None:
    now = int(time.time())
    wrong_times = [{claim: now + after} for each in _WRONG_TIMES for claim, after in each.items()]
    for wrong in [*_WRONG_CLAIMS, *wrong_times]:
        token = _signed_by_hand(issuer, wrong) if wrong.get("iss") == ["x"] else issuer.token(**wrong)
        assert await _verdict(client, token) == _INVALID, wrong


def _part(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _unsigned(header: object, claims: object, signature: bytes = b"") -> str:
    return ".".join(
        [_part(json.dumps(header).encode()), _part(json.dumps(claims).encode()), _part(signature)]
    )


def _signed_by_hand(issuer: OidcIssuer, claims: dict[str, Any]) -> str:
    """A signed token whose claims PyJWT would not write."""
    text = _unsigned({"alg": "RS256", "kid": "rsa"}, issuer.claims() | claims).rpartition(".")[0]
    signer = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256)
    return f"{text}.{_part(signer.sign(text.encode(), KEYS['rsa']))}"


async def test_a_token_without_an_asymmetric_signature_is_refused(
    client: httpx.AsyncClient, issuer: OidcIssuer
) -> None:
    claims = issuer.claims()
    assert (await _exchange(client, issuer.token())).status_code == 200
    for algorithm in ("none", "None", "NONE", "", None, 7, ["RS256"]):
        assert await _verdict(client, _unsigned({"alg": algorithm, "kid": "rsa"}, claims)) == _INVALID
    public = KEYS["rsa"].public_key()
    secrets = [
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
        public_jwk(KEYS["rsa"], "rsa")["n"].encode(),
    ]
    hmac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    for secret in secrets:
        for algorithm in ("HS256", "RS256"):
            text = _unsigned({"alg": algorithm, "kid": "rsa"}, claims).rpartition(".")[0]
            assert await _verdict(client, f"{text}.{_part(hmac.sign(text.encode(), secret))}") == _INVALID


async def test_keys_come_from_where_the_operator_says_alone(
    client: httpx.AsyncClient, issuer: OidcIssuer
) -> None:
    """A stranger's key, offered in every way that a header knows, is neither taken nor fetched."""
    jwk = public_jwk(STRANGER, "rsa")
    headers: list[dict[str, Any]] = [
        {"jku": f"{issuer.url}/strangers"},
        {"x5u": f"{issuer.url}/strangers"},
        {"jwk": jwk},
        {"x5c": ["MIIB"]},
        {"kid": f"{issuer.url}/strangers"},
        {"kid": "../../etc/passwd"},
        {"kid": "' OR 1=1 --"},
        {"kid": ""},
        {"crit": ["exp"], "exp": 1},
    ]
    for each in headers:
        assert await _verdict(client, issuer.token(key=STRANGER, headers=each)) == _INVALID, each
    assert {asked.target for asked in issuer.site.asked} == {"/keys"}


async def test_one_flipped_bit_anywhere_is_refused(client: httpx.AsyncClient, issuer: OidcIssuer) -> None:
    header, claims, signature = issuer.token().split(".")
    raw = bytearray(base64.urlsafe_b64decode(signature + "=="))
    raw[17] ^= 1
    assert await _verdict(client, f"{header}.{claims}.{_part(bytes(raw))}") == _INVALID
    swapped = _part(json.dumps(issuer.claims(groups=["pumps"], sub="eve")).encode())
    assert await _verdict(client, f"{header}.{swapped}.{signature}") == _INVALID


async def test_what_is_no_token_is_refused(client: httpx.AsyncClient) -> None:
    deep = _part(b"[" * 9000)
    for garbage in (".", "..", "a.b.c", "é.é.é", "x" * 16_384, f"{deep}.e30.", f"e30.{deep}."):
        assert await _verdict(client, garbage) == _INVALID, garbage[:20]
    assert (await _exchange(client, "")).status_code == 400
    assert (await _exchange(client, "x" * 16_385)).status_code == 400


@pytest.mark.parametrize(
    "field", ["grant_type", "subject_token_type", "requested_token_type"], ids=lambda field: field
)
async def test_other_kinds_of_exchange_are_refused_by_name(
    client: httpx.AsyncClient, issuer: OidcIssuer, field: str
) -> None:
    answer = await _exchange(client, issuer.token(), **{field: "urn:ietf:params:oauth:token-type:saml2"})
    assert _reason(answer) == (400, "INVALID_FIELD")
    assert field in answer.text


@pytest.mark.parametrize(
    ("claims", "claim"),
    [
        ({"org": "org-99"}, "org"),
        ({"org": ["org-17"]}, "org"),
        ({"org": None}, "org"),
        ({"org": "demo"}, "org"),
        ({"org": "org-18"}, "org"),
        ({"groups": ["admin"]}, "groups"),
        ({"groups": None}, "groups"),
        ({"groups": {"pumps": 1}}, "groups"),
        ({"sub": ""}, "sub"),
        ({"sub": "a\nb"}, "sub"),
        ({"sub": "x" * 97}, "sub"),
    ],
)
async def test_claims_that_the_operator_did_not_map_give_nothing(
    client: httpx.AsyncClient, issuer: OidcIssuer, claims: dict[str, Any], claim: str
) -> None:
    answer = await _exchange(client, issuer.token(**claims))
    assert _reason(answer) == (403, "SUBJECT_NOT_MAPPED")
    assert answer.json()["details"][0]["metadata"] == {"claim": claim}


async def test_an_unknown_key_is_looked_for_once_a_second_whoever_asks(
    client: httpx.AsyncClient, issuer: OidcIssuer
) -> None:
    began = time.monotonic()
    unknown = [issuer.token(headers={"kid": f"made-up-{number}"}) for number in range(40)]
    answers = await asyncio.gather(*(_verdict(client, token) for token in unknown))
    assert set(answers) == {_INVALID}
    assert len(issuer.site.asked) <= 1 + (time.monotonic() - began)


async def test_a_new_key_of_the_issuer_is_found(client: httpx.AsyncClient, issuer: OidcIssuer) -> None:
    assert (await _exchange(client, issuer.token())).status_code == 200
    issuer.keys["next"] = STRANGER
    token = issuer.token("next")

    async def taken() -> bool:
        return (await _exchange(client, token)).status_code == 200

    await until(taken)


async def test_an_issuer_that_is_away_is_told_and_found_again(
    client: httpx.AsyncClient, issuer: OidcIssuer
) -> None:
    good = issuer.site.answer
    for away in (
        Answer(status=500),
        Answer(b"<html>"),
        Answer(b'{"keys": 7}'),
        Answer(b"[" * 100_000),
        Answer(b" " * 2_000_000),
        Answer(status=302, headers={"location": f"{issuer.url}/keys"}),
    ):
        issuer.site.answer = lambda _, away=away: away  # type: ignore[misc]
        answer = await _exchange(client, issuer.token())
        assert _reason(answer) == (503, "ISSUER_UNAVAILABLE")
        assert "retryDelay" in answer.text
    issuer.site.answer = good

    async def back() -> bool:
        return (await _exchange(client, issuer.token())).status_code == 200

    await until(back)
    # From now on its keys are known, and it may be away.
    issuer.site.answer = lambda _: Answer(status=500)
    assert (await _exchange(client, issuer.token())).status_code == 200


async def test_an_address_that_shows_wrong_tokens_is_made_to_wait(
    client: httpx.AsyncClient, auth: AuthApp, issuer: OidcIssuer
) -> None:
    wrong = issuer.token(aud="elsewhere")
    known = issuer.token()
    assert (await _exchange(client, known)).status_code == 200
    assert await _verdict(client, wrong) == _INVALID
    await auth.sql("UPDATE auth.address_failures SET failures = 200 WHERE secret = 'subject_token'")
    assert await _verdict(client, wrong) == _INVALID
    for token in (wrong, issuer.token(sub="eve")):
        refused = await _exchange(client, token)
        assert _reason(refused) == (429, "LOGIN_LIMITED")
        assert "retryDelay" in refused.json()["details"][1]
    assert (await _exchange(client, known)).status_code == 200
