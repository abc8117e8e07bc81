import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from twinmesh_cli.main import app
from twinmesh_cli.session import ClientSettings
from twinmesh_cli.settings import LauncherSettings, load_settings

_PASSWORD = "correct horse"
_URL = "postgresql://migrator:hidden-word@db.example:5432/twinmesh"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TWINMESH_GATEWAY_PORT", "TWINMESH_BIND", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TWINMESH_HOME", str(tmp_path))


def test_config_lists_every_setting_and_masks_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINMESH_ADMIN_PASSWORD", _PASSWORD)
    monkeypatch.setenv("TWINMESH_DATABASE_URL", _URL)
    monkeypatch.setenv("TWINMESH_GATEWAY_PORT", "9443")

    plain = CliRunner().invoke(app, ["config"])
    listed = CliRunner().invoke(app, ["config", "--json"])

    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert set(rows) >= {
        "TWINMESH_HOME",
        "TWINMESH_GATEWAY_PORT",
        "TWINMESH_BIND",
        "TWINMESH_MQTT_PORT",
        "TWINMESH_ADMIN_PASSWORD",
        "TWINMESH_DATABASE_URL",
        "TWINMESH_NATS_URL",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    }
    assert (rows["TWINMESH_GATEWAY_PORT"]["value"], rows["TWINMESH_GATEWAY_PORT"]["default"]) == (
        "9443",
        "8080",
    )
    assert "TWINMESH_GATEWAY_PORT=9443  (default: 8080)" in plain.stdout
    for output in (plain.stdout, listed.stdout):
        assert _PASSWORD not in output
        assert "hidden-word" not in output


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TWINMESH_GATEWAY_PORT", "80800"),
        ("TWINMESH_BIND", "localhost"),
        ("TWINMESH_MQTT_PORT", "mqtt"),
        ("TWINMESH_MQTT_PORT", "8080"),
        ("TWINMESH_DEVICE_PORT", "1883"),
        ("TWINMESH_TRUST_DOMAIN", "Plant/1"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector"),
        ("TWINMESH_MESH_SECRET", "short"),
        # Without TWINMESH_DATABASE_URL.
        ("TWINMESH_DATABASE_DATA_DIR", "/var/lib/postgresql"),
        ("TWINMESH_LOG_LEVEL", "LOUD"),
    ],
)
def test_a_wrong_setting_is_named_and_its_value_is_not(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SystemExit) as exit_info:
        load_settings()

    assert exit_info.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"twinmesh: {name}: ")
    assert value not in told.removeprefix(f"twinmesh: {name}: ") or name != "TWINMESH_MESH_SECRET"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"TWINMESH_GATEWAY": "nonsense"}, "TWINMESH_GATEWAY: 'nonsense' is not host:port"),
        (
            {"TWINMESH_GATEWAY": "https://127.0.0.1:1", "TWINMESH_GATEWAY_AUTHORITIES": "/nowhere.pem"},
            "TWINMESH_GATEWAY_AUTHORITIES: /nowhere.pem: No such file or directory",
        ),
        (
            {"TWINMESH_GATEWAY_TLS_CERTIFICATE": "/nowhere.pem", "TWINMESH_GATEWAY_TLS_KEY": "/nowhere.key"},
            "TWINMESH_GATEWAY_TLS_CERTIFICATE: /nowhere.pem: No such file or directory",
        ),
    ],
)
def test_how_the_gateway_is_not_reached_is_told_by_its_variable(
    given: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    ended = CliRunner().invoke(app, ["users"])

    assert ended.exit_code == 2
    assert ended.stderr.startswith(f"twinmesh: {told}")


@pytest.mark.parametrize(
    ("bind", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("::", "http://[::1]:8080"),
        ("::1", "http://[::1]:8080"),
        ("10.1.2.3", "http://10.1.2.3:8080"),
    ],
)
def test_the_address_is_one_that_clients_here_can_use(bind: str, url: str) -> None:
    assert LauncherSettings(bind=bind).gateway_url == url


@pytest.mark.parametrize(("given", "taken"), [("tmk_demo_a_b\r\n", "tmk_demo_a_b"), (" ", "")])
def test_an_api_key_may_come_with_its_files_line_end(
    given: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINMESH_API_KEY", given)

    assert ClientSettings().api_key.get_secret_value() == taken


@pytest.mark.parametrize("key", ["tmk_démo_a_b", "tmk_demo\x07_a_b"])
def test_a_key_that_fits_into_no_header_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINMESH_API_KEY", key)

    told = CliRunner().invoke(app, ["query", "pump-7"])

    assert told.exit_code == 2
    assert told.stderr.startswith("twinmesh: TWINMESH_API_KEY: ")
    assert key not in told.stderr


@pytest.mark.parametrize(
    ("environment", "is_wanted"),
    [
        ({}, True),
        ({"TWINMESH_SIMULATE": "false"}, False),
        # A database of somebody's own gets no devices that nobody asked for.
        ({"TWINMESH_DATABASE_URL": _URL}, False),
        ({"TWINMESH_DATABASE_URL": _URL, "TWINMESH_SIMULATE": "true"}, True),
    ],
)
def test_a_fleet_is_simulated_unless_nobody_wants_it(
    environment: dict[str, str], is_wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings().wants_simulation is is_wanted
