import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa

from auth_svc.access_tokens import AccessTokens, Signer
from auth_svc.issuer_keys import FRESH_US, IssuerKeys
from auth_svc.issuers import Issuer, IssuersInvalid, read_issuers
from auth_svc.login_limits import LoginLimits
from auth_svc.token_exchange import TokenExchange
from meshkit.clock import MICROS_PER_SECOND
from meshkit.errors import Unauthenticated, Unavailable
from meshkit.testing.clock import ManualClock
from tests.rpc.oidc_issuer import KEYS, public_jwk
from tests.unit.test_auth_key_exchange import NoFailures
from twinmesh.auth.v1.tenant_service_pb2 import Tenant

_GOOD: dict[str, Any] = {
    "name": "corp",
    "issuer": "https://login.example.com",
    "audience": "twinmesh",
    "jwks_url": "https://login.example.com/keys",
    "algorithms": ["RS256"],
    "tenant": {"value": "demo"},
    "role": {"value": "viewer"},
}


def _file(folder: Path, *entries: dict[str, Any]) -> Path:
    path = folder / "issuers.yaml"
    told = [{name: value for name, value in entry.items() if value is not None} for entry in entries]
    path.write_text(yaml.safe_dump({"issuers": told}))
    return path


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"algorithms": ["none"]}, "algorithms"),
        ({"algorithms": []}, "algorithms"),
        ({"audience": None}, "audience"),
        ({"audience": ""}, "audience"),
        ({"jwks_url": None}, "jwks_url"),
        ({"jwks_file": "keys.json"}, "jwks_file"),
        ({"jwks_url": "file:///etc/passwd"}, "https"),
        ({"tenant": {"value": "Not A Tenant"}}, "tenant"),
        ({"tenant": {"claim": "org"}}, "tenant"),
        ({"tenant": {"value": "demo", "claim": "org", "values": {"a": "b"}}}, "tenant"),
        ({"tenant": {}}, "tenant"),
        ({"role": {"value": "root"}}, "role"),
        ({"role": {"claim": "groups", "values": {"a": "root"}}}, "role"),
        ({"tenant": {"value": "system"}}, "operators"),
        ({"tenant": {"claim": "org", "values": {"a": "demo", "b": "system"}}}, "operators"),
        ({"role": {"value": "installation_admin"}}, "'demo' has no role 'installation_admin'"),
        ({"role": {"claim": "groups", "values": {"a": "installation_admin"}}}, "has no role"),
        ({"name": "Corp/"}, "name"),
        ({"typo": 1}, "typo"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    with pytest.raises(IssuersInvalid) as invalid:
        read_issuers(_file(tmp_path, _GOOD | change))
    assert why in str(invalid.value)
    assert "issuers.yaml" in str(invalid.value)


def test_what_is_no_file_of_issuers_is_told(tmp_path: Path) -> None:
    path = tmp_path / "issuers.yaml"
    with pytest.raises(IssuersInvalid, match="cannot be read: No such file or directory"):
        read_issuers(path)
    for text in ("a: [", "", "issuers: 7", "- 1", "!!python/object/apply:os.system ['true']"):
        path.write_text(text)
        with pytest.raises(IssuersInvalid):
            read_issuers(path)


def test_nobody_stands_there_twice(tmp_path: Path) -> None:
    for same in ({"name": "other"}, {"issuer": "https://other.example.com"}):
        with pytest.raises(IssuersInvalid, match="twice"):
            read_issuers(_file(tmp_path, _GOOD, _GOOD | same))


def test_a_file_of_keys_lies_beside(tmp_path: Path) -> None:
    (issuer,) = read_issuers(_file(tmp_path, _GOOD | {"jwks_url": None, "jwks_file": "keys.json"})).values()
    assert issuer.jwks_file == tmp_path / "keys.json"


def test_auth_svc_does_not_start_with_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    path = _file(tmp_path, _GOOD | {"algorithms": ["HS256"]})
    settings = {
        "TWINMESH_ISSUERS": str(path),
        "TWINMESH_SERVICE_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "TWINMESH_MESH_SECRET": "x" * 43,
        "TWINMESH_IDENTITY_DIR": str(tmp_path),
        **{f"TWINMESH_{name}_ADDRESS": "127.0.0.1:1" for name in ("AUTH", "ASSET", "INGEST", "TWIN")},
    }
    ended = subprocess.run(
        [sys.executable, "-m", "auth_svc"],
        env={"PATH": os.environ["PATH"], **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"auth_svc: TWINMESH_ISSUERS: {path}: issuers.0.algorithms.0: ")


class _Jwks:
    """Where the keys come from; OSError while it is away."""

    def __init__(self) -> None:
        self.kids = ["one"]
        self.members: dict[str, str] = {}
        self.key: Any = KEYS["rsa"]
        self.away = False
        self.reads = 0

    async def __call__(self, issuer: Issuer) -> bytes:
        self.reads += 1
        if self.away:
            raise OSError("away")
        return json.dumps({"keys": [public_jwk(self.key, kid, **self.members) for kid in self.kids]}).encode()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_700_000_000 * MICROS_PER_SECOND)


@pytest.fixture
def jwks() -> _Jwks:
    return _Jwks()


@pytest.fixture
def keys(jwks: _Jwks, clock: ManualClock) -> IssuerKeys:
    return IssuerKeys(issuer=Issuer.model_validate(_GOOD), read=jwks, clock=clock)


async def test_an_unknown_key_is_read_for_once_a_second(
    keys: IssuerKeys, jwks: _Jwks, clock: ManualClock
) -> None:
    assert await keys.key("one", "RS256") is not None
    for _ in range(10):
        assert await keys.key("two", "RS256") is None
    assert jwks.reads == 1
    clock.advance(seconds=1)
    jwks.kids.append("two")
    assert await keys.key("two", "RS256") is not None
    assert jwks.reads == 2


async def test_a_slow_issuer_is_asked_once_by_all_who_wait(clock: ManualClock) -> None:
    began, go = asyncio.Event(), asyncio.Event()
    reads = 0

    async def slow(_: Issuer) -> bytes:
        nonlocal reads
        reads += 1
        began.set()
        await go.wait()
        raise OSError("timed out")

    keys = IssuerKeys(issuer=Issuer.model_validate(_GOOD), read=slow, clock=clock)
    waiting = [asyncio.create_task(keys.key(f"kid-{number}", "RS256")) for number in range(5)]
    await began.wait()
    clock.advance(seconds=5)
    go.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(answer, Unavailable) for answer in answers)
    assert reads == 1


async def test_a_key_that_was_taken_back_is_gone_when_the_rest_is_read_anew(
    keys: IssuerKeys, jwks: _Jwks, clock: ManualClock
) -> None:
    jwks.kids = ["one", "two"]
    assert await keys.key("two", "RS256") is not None
    jwks.kids = ["one"]
    await keys.refresh()
    assert await keys.key("two", "RS256") is not None
    clock.advance(seconds=FRESH_US // MICROS_PER_SECOND)
    await keys.refresh()
    assert await keys.key("two", "RS256") is None


async def test_while_the_issuer_is_away_its_keys_are_good_for_an_hour(
    keys: IssuerKeys, jwks: _Jwks, clock: ManualClock
) -> None:
    assert await keys.key("one", "RS256") is not None
    jwks.away = True
    clock.advance(seconds=3599)
    await keys.refresh()
    assert await keys.key("one", "RS256") is not None
    clock.advance(seconds=1)
    with pytest.raises(Unavailable):
        await keys.key("one", "RS256")


async def test_before_anything_was_asked_nothing_is_read(keys: IssuerKeys, jwks: _Jwks) -> None:
    await keys.refresh()
    assert jwks.reads == 0


@pytest.mark.parametrize(
    ("members", "algorithm"),
    [
        ({}, "ES256"),
        ({}, "EdDSA"),
        ({"alg": "PS256"}, "RS256"),
        ({"use": "enc"}, "RS256"),
        ({"n": "!"}, "RS256"),
    ],
)
async def test_a_key_is_used_for_what_it_is_meant_for(
    keys: IssuerKeys, jwks: _Jwks, members: dict[str, str], algorithm: str
) -> None:
    jwks.members = members
    assert await keys.key("one", algorithm) is None


def _exchange(path: Path | None, jwks: _Jwks, clock: ManualClock) -> TokenExchange:
    class NoSigner:
        def signer(self) -> Signer:
            raise AssertionError("nothing is to be signed")

    async def find_tenant(tenant: str) -> Tenant:
        return Tenant(id=tenant)

    return TokenExchange(
        path=path,
        read_jwks=jwks,
        find_tenant=find_tenant,
        access_tokens=AccessTokens(signers=NoSigner(), clock=clock),
        limits=LoginLimits(store=NoFailures(), clock=clock),
        clock=clock,
    )


async def test_a_file_that_broke_leaves_the_issuers_as_they_were(
    tmp_path: Path, jwks: _Jwks, clock: ManualClock
) -> None:
    path = _file(tmp_path, _GOOD)
    exchange = _exchange(path, jwks, clock)
    before = exchange._keys
    path.write_text("issuers: [{name: broken}]")
    with pytest.raises(IssuersInvalid):
        await exchange.refresh()
    assert exchange._keys is before
    path.write_text(yaml.safe_dump({"issuers": [_GOOD]}))
    await exchange.refresh()
    assert list(exchange._keys.values()) == list(before.values()), "what was known of its keys stays"


async def test_without_issuers_nothing_is_exchanged(jwks: _Jwks, clock: ManualClock) -> None:
    with pytest.raises(Unauthenticated):
        await _exchange(None, jwks, clock).exchange("a.b.c", address="192.0.2.1")


async def test_a_weak_key_of_the_issuer_verifies_nothing(
    tmp_path: Path, jwks: _Jwks, clock: ManualClock
) -> None:
    jwks.key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    claims = {"iss": _GOOD["issuer"], "aud": "twinmesh", "sub": "ada", "exp": 4_000_000_000}
    with pytest.warns(match="below"):
        token = jwt.encode(claims, jwks.key, algorithm="RS256", headers={"kid": "one"})
    with pytest.raises(Unauthenticated):
        await _exchange(_file(tmp_path, _GOOD), jwks, clock).exchange(token, address="192.0.2.1")
