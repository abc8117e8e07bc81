"""A mesh whose secrets can be recognised, used well and badly: none is in what it writes or shows."""

import base64
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiomqtt
import httpx
import psutil
import pytest

from meshkit import secrets
from meshkit.nats_server import NatsUser, user_url
from meshkit.testing.http import HttpSite
from meshkit.testing.mesh import Mesh, eventually, start_mesh
from tests.rpc.oidc_issuer import KEYS, STRANGER, OidcIssuer, public_jwk
from twinmesh_cli.database import role_password
from twinmesh_cli.owners import OWNERS
from twinmesh_client import RequestSigner

_ROOT = b"recognisable root secret of a test"
_MESH_SECRET = base64.urlsafe_b64encode(_ROOT).decode()
_PASSWORD = "recognisable-password-of-admin"
_WRONG = "recognisable-wrong-"
_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:jwt"
_MODULES = ("auth_svc", "asset_svc", "ingest_svc", "twin_svc", "telemetry_store.maintenance")
_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"


@pytest.fixture(scope="module")
def issuer() -> OidcIssuer:
    return OidcIssuer(HttpSite(443, lambda _: None))


@pytest.fixture(scope="module")
def secret_mesh(issuer: OidcIssuer) -> Iterator[Mesh]:
    home = Path(tempfile.mkdtemp(prefix="twinmesh-secrets-"))
    home.chmod(0o755)
    mounted = home / "mounted"
    mounted.mkdir(mode=0o700)
    (mounted / "TWINMESH_ADMIN_PASSWORD").write_text(_PASSWORD)
    (home / "root").write_text(_MESH_SECRET + "\n")
    (home / "keys.json").write_text(json.dumps({"keys": [public_jwk(KEYS["rsa"], "rsa")]}))
    issuer.write(home / "issuers.yaml", jwks_url=None, jwks_file="keys.json")
    started = start_mesh(
        home,
        TWINMESH_ADMIN_PASSWORD="",
        TWINMESH_SECRETS_DIR=str(mounted),
        TWINMESH_MESH_SECRET_FILE=str(home / "root"),
        TWINMESH_ISSUERS=str(home / "issuers.yaml"),
        TWINMESH_LOG_LEVEL="DEBUG",
        OTEL_METRIC_EXPORT_INTERVAL="500",
    )
    yield replace(started, password=_PASSWORD)
    started.twinmesh("down")
    shutil.rmtree(home, ignore_errors=True)


class _Caller:
    """Sends requests and keeps every answer."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self.answers: list[str] = []

    def send(self, method: str, path: str, *, bearer: str = "", **request: Any) -> httpx.Response:
        if bearer:
            request["headers"] = {"authorization": f"Bearer {bearer}"}
        answer = self._client.request(method, path, **request)
        self.answers.append(f"{answer.headers} {answer.text if answer.is_error else ''}")
        return answer


@pytest.fixture
def caller(secret_mesh: Mesh) -> Iterator[_Caller]:
    with httpx.Client(base_url=secret_mesh.url, timeout=30, trust_env=False) as client:
        yield _Caller(client)


async def test_no_secret_is_in_what_a_mesh_writes_or_shows(
    secret_mesh: Mesh, caller: _Caller, issuer: OidcIssuer
) -> None:
    mesh = secret_mesh
    hidden = [_MESH_SECRET, _MESH_SECRET.rstrip("="), _ROOT.decode(), _PASSWORD, _WRONG]
    hidden += [role_password(_ROOT, role.name) for owner in OWNERS for role in owner.roles]
    hidden += [user_url(_ROOT, user, address="h").split(":")[2].split("@")[0] for user in NatsUser]
    hidden.append(secrets.derive_text(_ROOT, "signing-keys"))

    def login(**body: Any) -> httpx.Response:
        return caller.send("POST", "/v1/auth/login", json={"tenant": "demo", "username": "admin", **body})

    def exchange(token: str) -> httpx.Response:
        body = {"grant_type": _GRANT, "subject_token": token, "subject_token_type": _TOKEN_TYPE}
        hidden.append(token.rpartition(".")[2])
        return caller.send("POST", "/v1/auth/token", json=body)

    # Everything that takes a secret, as it should be.
    session = login(password=_PASSWORD).json()
    renewed = caller.send("POST", "/v1/auth/refresh", json={"refreshToken": session["refreshToken"]}).json()
    bearer = renewed["accessToken"]
    key = caller.send("POST", "/v1/apiKeys", bearer=bearer, json={"displayName": "k"}).json()["secret"]
    assert caller.send("GET", "/v1/devices", bearer=key).is_success
    made = caller.send("POST", "/v1/apiKeys", bearer=bearer, json={"displayName": "signs"}).json()
    signed = RequestSigner(made["signingSecret"]).authorization("GET", "/v1/devices")
    hidden.append(re.findall(r'signature="([^"]+)"', signed)[0])
    assert caller.send("GET", "/v1/devices", headers={"authorization": signed}).is_success
    user = {"user": {"username": "guest", "role": "viewer"}, "password": f"{_PASSWORD}-first"}
    assert caller.send("POST", "/v1/users", bearer=bearer, json=user).is_success
    reset = {"password": f"{_PASSWORD}-second"}
    assert caller.send("POST", "/v1/users/guest:resetPassword", bearer=bearer, json=reset).is_success
    exchanged = exchange(issuer.token())
    assert exchanged.is_success, exchanged.text
    federated = exchanged.json()["access_token"]
    assert caller.send("GET", "/v1/devices", bearer=federated).is_success
    for token in (session["accessToken"], bearer, federated):
        hidden.append(token.rpartition(".")[2])
    for opaque in (session["refreshToken"], renewed["refreshToken"], key, made["signingSecret"]):
        hidden.append(opaque.rpartition("_")[2])

    # And as it should not.
    wrong = f"{_WRONG}password"
    assert login(password=wrong).status_code == 401
    assert login(password=wrong + "\0").status_code == 400
    assert login(password={"is": wrong}).status_code == 400
    assert login(password=wrong * 100).status_code == 400
    caller.send("POST", "/v1/auth/login", content=f'{{"password": "{wrong}", "tenant"')
    caller.send("POST", "/v1/auth/refresh", json={"refreshToken": session["refreshToken"]})
    caller.send("POST", "/v1/auth/refresh", json={"refreshToken": f"tmr_demo_a_{wrong}"})
    # Replayed, and by a signature of somebody else.
    for authorization in (signed, re.sub('signature="[^"]+', f'signature="{_WRONG}', signed)):
        headers = {"authorization": authorization}
        assert caller.send("GET", "/v1/devices", headers=headers).status_code == 401
    for credential in (wrong, f"tmk_demo_abc_{wrong}", f"{bearer}{_WRONG}", key[:-1] + "g"):
        assert caller.send("GET", "/v1/devices", bearer=credential).status_code == 401
    caller.send("GET", "/v1/devices", bearer=f"{bearer}\t{wrong}")
    assert exchange(issuer.token(key=STRANGER)).status_code == 401
    assert exchange(issuer.token(org="org-99")).status_code == 403
    assert exchange(f"{_WRONG}.{_WRONG}.{_WRONG}").status_code == 401
    for password in (key, wrong):
        await _try_mqtt(mesh, password)
    caller.send("POST", "/v1/auth/logout", bearer=bearer, json={})

    traced = caller.send("GET", "/v1/devices", bearer=key).headers["x-trace-id"]
    eventually(lambda: mesh.twinmesh("trace", traced, check=False).returncode == 0, "the trace is there")
    shown = _shown(mesh, traced)
    shown["answers"] = "\n".join(caller.answers)

    # That this looks where things are: names of what was done are there.
    written = shown["logs"] + shown["traces"]
    assert "twinmesh_cli" in shown["ps"]
    for name in ("corp/ada", "log-in failed", "ExchangeToken", "twinmesh.ingest"):
        assert name in written, name
    assert "********" in shown["twinmesh config"]
    found = {place: [each for each in hidden if each and each in text] for place, text in shown.items()}
    assert {place: each for place, each in found.items() if each} == {}


def test_the_root_secret_is_given_to_auth_svc_alone(secret_mesh: Mesh) -> None:
    given = {
        each.info["cmdline"][-1]: _MESH_SECRET in each.environ().values()
        for each in psutil.process_iter(["cmdline"])
        if each.info["cmdline"] and each.info["cmdline"][-1] in _MODULES
        if each.environ().get("TWINMESH_IDENTITY_DIR", "").startswith(str(secret_mesh.home))
    }
    assert given == {module: module == "auth_svc" for module in _MODULES}


async def _try_mqtt(mesh: Mesh, password: str) -> None:
    try:
        async with aiomqtt.Client(
            "127.0.0.1", mesh.mqtt_port, username="no-device", password=password, identifier="no-device"
        ):
            pass
    except aiomqtt.MqttError:
        pass


def _shown(mesh: Mesh, trace: str) -> dict[str, str]:
    """What anybody can see of a mesh, by where."""

    def content(*patterns: str) -> str:
        files = [file for pattern in patterns for file in sorted(mesh.home.glob(pattern))]
        assert files, patterns
        return "\n".join(file.read_bytes().decode("latin-1") for file in files)

    shown = {
        "logs": content("logs/*"),
        "traces": content("traces.sqlite*"),
        "metrics": content("metrics.sqlite*"),
        "state": content("state.json"),
        # As `ps` shows them to everybody.
        "ps": "\n".join(" ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])),
    }
    for command in (["config"], ["config", "--json"], ["status"], ["status", "--json"], ["trace", trace]):
        done = mesh.twinmesh(*command, check=False)
        shown[f"twinmesh {' '.join(command)}"] = done.stdout + done.stderr
    return shown
