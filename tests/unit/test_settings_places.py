"""Where settings come from: environment, files, Vault; in this order, and read anew."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import Field, SecretStr

from meshkit.clock import MICROS_PER_SECOND
from meshkit.config import Settings, VaultSettings
from meshkit.present_settings import REREAD_EVERY_S, PresentSettings
from meshkit.runtime import read_settings
from meshkit.secret_places import SettingsUnreadable
from meshkit.testing.clock import ManualClock

_TOKEN = "hvs.recognisable-token"


class _Settings(Settings):
    password: SecretStr = Field(SecretStr("default"), description="A secret.")
    pieces: int = Field(1, description="A number.")
    endpoint: str = Field("", validation_alias="OTEL_ENDPOINT", description="Named otherwise.")


def _password() -> str:
    return _Settings().password.get_secret_value()


class Vault:
    """A Vault that knows one token and one secret, as its HTTP API has them."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.token = _TOKEN
        self.values: dict[str, object] = {}
        self.moved_to = ""
        self.asked: list[str] = []


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Vault]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append(self.path)
            status, told = self._answer()
            self.send_response(status)
            if status == 307:
                self.send_header("Location", made.moved_to)
            content = json.dumps(told).encode()
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _answer(self) -> tuple[int, object]:
            if made.moved_to:
                return 307, {}
            if self.headers["X-Vault-Token"] != made.token:
                return 403, {"errors": ["permission denied"]}
            if self.path != "/v1/secret/data/twinmesh":
                return 404, {"errors": []}
            return 200, {"data": {"data": made.values, "metadata": {"version": 1}}}

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made = Vault(server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("TWINMESH_VAULT_ADDRESS", made.address)
        token = tmp_path / "vault-token"
        token.write_text(_TOKEN + "\n")
        monkeypatch.setenv("TWINMESH_VAULT_TOKEN_FILE", str(token))
        yield made
        server.shutdown()
        thread.join()


def test_the_environment_comes_first_then_files_then_vault(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _password() == "default"
    vault.values = {"TWINMESH_PASSWORD": "of vault", "TWINMESH_PIECES": "7", "TWINMESH_OTHER": 3}
    assert _password() == "of vault"
    assert _Settings().pieces == 7

    folder = tmp_path / "mounted"
    folder.mkdir()
    monkeypatch.setenv("TWINMESH_SECRETS_DIR", str(folder))
    assert _password() == "of vault"
    (folder / "TWINMESH_PASSWORD").write_text("of the folder\n")
    assert _password() == "of the folder"

    named = tmp_path / "named"
    named.write_text(" of its file \n")
    monkeypatch.setenv("TWINMESH_PASSWORD_FILE", str(named))
    assert _password() == " of its file "

    monkeypatch.setenv("TWINMESH_PASSWORD", "of the environment")
    assert _password() == "of the environment"
    assert _Settings(password="given").password.get_secret_value() == "given"


def test_what_has_another_name_is_found_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "OTEL_ENDPOINT").write_text("http://of-the-folder:1")
    monkeypatch.setenv("TWINMESH_SECRETS_DIR", str(tmp_path))
    assert _Settings().endpoint == "http://of-the-folder:1"
    monkeypatch.setenv("OTEL_ENDPOINT", "http://of-the-environment:1")
    assert _Settings().endpoint == "http://of-the-environment:1"


def _told(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        read_settings("a_svc", _Settings)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "recognisable" not in told
    return told


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TWINMESH_PASSWORD_FILE", str(tmp_path / "absent"))
    told = f"a_svc: TWINMESH_PASSWORD_FILE: {tmp_path}/absent cannot be read: FileNotFoundError\n"
    assert _told(capsys) == told
    monkeypatch.delenv("TWINMESH_PASSWORD_FILE")
    monkeypatch.setenv("TWINMESH_SECRETS_DIR", str(tmp_path / "absent"))
    assert "is no folder" in _told(capsys)


def test_a_vault_that_refuses_is_told_without_its_secrets(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vault.token = "another"
    assert "Forbidden at secret/twinmesh" in _told(capsys)
    vault.token = _TOKEN
    monkeypatch.setenv("TWINMESH_VAULT_PATH", "secret/elsewhere")
    assert "InvalidPath at secret/elsewhere" in _told(capsys)
    monkeypatch.setenv("TWINMESH_VAULT_PATH", "secret")
    assert "is not engine/secret" in _told(capsys)
    monkeypatch.delenv("TWINMESH_VAULT_PATH")
    monkeypatch.setenv("TWINMESH_VAULT_ADDRESS", "http://127.0.0.1:1")
    assert "ConnectionError" in _told(capsys)
    monkeypatch.setenv("TWINMESH_VAULT_ADDRESS", "http://vault.example.com:8200")
    assert "must begin with https" in _told(capsys)


def test_vault_s_token_goes_nowhere_else(vault: Vault, capsys: pytest.CaptureFixture[str]) -> None:
    vault.moved_to = f"{vault.address}/v1/secret/data/other"
    assert "is not that of a KV engine" in _told(capsys)
    assert vault.asked == ["/v1/secret/data/twinmesh"]


def test_a_wrong_value_is_told_by_its_variable_alone(
    vault: Vault, capsys: pytest.CaptureFixture[str]
) -> None:
    vault.values = {"TWINMESH_PIECES": "recognisable"}
    assert _told(capsys).startswith("a_svc: TWINMESH_PIECES: ")


def test_vault_s_own_settings_are_listed_masked(vault: Vault) -> None:
    rows = {row.name: row.value for row in VaultSettings().rows()}
    assert rows["TWINMESH_VAULT_ADDRESS"] == vault.address
    assert rows["TWINMESH_VAULT_TOKEN"] == "********"
    assert _TOKEN not in repr(VaultSettings())


async def test_settings_are_read_anew_every_half_minute_and_stay_when_they_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "password"
    monkeypatch.setenv("TWINMESH_PASSWORD_FILE", str(file))
    file.write_text("first")
    clock = ManualClock(0)
    password = PresentSettings(_Settings(pieces=5), clock=clock).of(
        lambda now: (now.password.get_secret_value(), now.pieces)
    )
    file.write_text("second")
    clock._now_us = REREAD_EVERY_S * MICROS_PER_SECOND - 1
    assert await password() == ("first", 5)
    clock._now_us += 1
    assert await password() == ("second", 5)
    file.unlink()
    clock.advance(seconds=REREAD_EVERY_S)
    assert await password() == ("second", 5)
    file.write_text("third")
    assert await password() == ("second", 5)
    clock.advance(seconds=REREAD_EVERY_S)
    assert (await password())[0] == "third"


async def test_settings_that_became_wrong_stay_as_they_were(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = ManualClock(0)
    pieces = PresentSettings(_Settings(), clock=clock).of(lambda now: now.pieces)
    monkeypatch.setenv("TWINMESH_PIECES", "recognisable")
    clock.advance(seconds=REREAD_EVERY_S)
    assert await pieces() == 1
    assert "recognisable" not in "".join(capsys.readouterr())


def test_an_unreadable_place_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINMESH_PASSWORD_FILE", "/nowhere")
    with pytest.raises(SettingsUnreadable):
        _Settings()
