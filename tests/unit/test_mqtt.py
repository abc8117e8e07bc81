"""What services agree on about devices, and how NATS's server is configured for them."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.embedded import binaries
from meshkit.mqtt import CONSUMER, STREAM, Login, telemetry_subject
from meshkit.nats_server import MqttListener, NatsUser, Tls, issuer, server_config, user_password, user_url

ROOT = bytes(range(32))
TENANTS = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True)
KEYS = st.from_regex(r"[a-z0-9]{1,64}", fullmatch=True)
DEVICES = st.just("") | st.from_regex(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?", fullmatch=True)


@given(tenant=TENANTS, credential_id=KEYS, device_id=DEVICES)
def test_a_login_comes_back_from_its_text(tenant: str, credential_id: str, device_id: str) -> None:
    by_key = Login(tenant, credential_id, device_id)
    listed = Login(tenant, credential_id, "", devices_as_of=2**63 - 1)
    assert Login.parse(listed.text) == listed
    by_certificate = Login(tenant, credential_id, device_id, by_certificate=True)
    for login in (by_key, by_certificate):
        assert Login.parse(login.text) == login
    rotated = Login(tenant, f"{credential_id}-2", device_id)
    assert Login.parse(rotated.text) == rotated
    assert rotated.principal == f"api_key:{credential_id}"
    assert by_key.principal == f"api_key:{credential_id}"
    assert by_certificate.principal == f"device:{device_id}"


@given(text=st.text(max_size=30) | st.text("a1-/", max_size=12))
def test_a_text_is_a_login_or_refused(text: str) -> None:
    try:
        login = Login.parse(text)
    except ValueError:
        assert (
            text.count("/") != 2
            or "//" in text
            or text.startswith("/")
            or set(text) - set("a1-/")
            or "-" in text
        )
    else:
        assert login.text == text + ("" if login.device_id else "@0")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "//",
        "demo",
        "demo/key",
        "/key/pump",
        "demo//pump",
        "demo/key/pump/",
        "demo/key/pump\n",
        "d/K/p",
        "d/k/@",
        "d/k/@x",
        "d/k/@-1",
    ],
)
def test_what_is_no_login(text: str) -> None:
    with pytest.raises(ValueError, match="no log-in of a device"):
        Login.parse(text)


def test_the_subject_is_that_of_the_topic() -> None:
    assert telemetry_subject("pump-1") == "devices.pump-1.telemetry"


def _certificate(folder: Path) -> Tls:
    files = Tls(str(folder / "chain.pem"), str(folder / "key.pem"))
    command = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost "
        f"-keyout {files.key} -out {files.certificate}"
    )
    subprocess.run(["openssl", *command.split()], check=True, capture_output=True)
    return files


@pytest.mark.parametrize("sync_always", [True, False])
@pytest.mark.parametrize("mqtt", ["closed", "open", "tls", "mtls"])
def test_nats_takes_the_configuration(tmp_path: Path, mqtt: str, sync_always: bool) -> None:
    listener = None
    if mqtt != "closed":
        tls = None if mqtt == "open" else _certificate(tmp_path)
        if mqtt == "mtls" and tls is not None:
            tls = replace(tls, client_authority=tls.certificate)
        listener = MqttListener("0.0.0.0", 1883, tls)
    config = server_config(
        root=ROOT,
        listen="127.0.0.1:4222",
        store_dir=str(tmp_path / "streams ü 'of' \"mine\""),
        mqtt=listener,
        sync_always=sync_always,
        monitor="127.0.0.1:8222",
    )
    path = tmp_path / "nats.json"
    path.write_text(json.dumps(config, ensure_ascii=False))
    command = [str(binaries.nats_server(None)), "-t", "-c", str(path)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    # What NATS would refuse, it does refuse.
    path.write_text(json.dumps({**config, "system_account": "NOBODY", "unheard": 1}))
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_every_secret_follows_from_the_root_alone() -> None:
    passwords = {user: user_password(ROOT, user) for user in NatsUser}
    assert len(set(passwords.values())) == len(NatsUser)
    assert passwords == {user: user_password(ROOT, user) for user in NatsUser}
    assert issuer(ROOT) == issuer(ROOT) != issuer(bytes(32))
    assert (
        user_url(ROOT, NatsUser.AUTH, address="nats:4222")
        == f"nats://auth:{passwords[NatsUser.AUTH]}@nats:4222"
    )


def test_ingest_may_do_nothing_but_its_own() -> None:
    config = json.loads(
        json.dumps(server_config(root=ROOT, listen="127.0.0.1:4222", store_dir="/data", mqtt=None))
    )
    (ingest,) = config["accounts"]["DEVICES"]["users"]
    publish = ingest["permissions"]["publish"]["allow"]
    assert all(STREAM in subject for subject in publish if subject != "$SYS.REQ.ACCOUNT.PING.CONNZ")
    assert not [subject for subject in publish if "DELETE" in subject or "$MQTT.msgs" in subject]
    assert f"$JS.ACK.{STREAM}.{CONSUMER}.>" in publish
    assert "mqtt" not in config
    # Whoever is none of our own users is asked about.
    assert sorted(config["authorization"]["auth_callout"]["auth_users"]) == sorted(NatsUser)
