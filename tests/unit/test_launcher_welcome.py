"""What `twinmesh up` says once the mesh is ready."""

import pytest
from pydantic import SecretStr

from twinmesh_cli.seeding import Seeded
from twinmesh_cli.settings import LauncherSettings
from twinmesh_cli.stack import Started
from twinmesh_cli.up import welcome

_URL = "http://127.0.0.1:8080"


def _told(seeded: Seeded, *, admin_password: str | None = None) -> str:
    started = Started(gateway_url=_URL, mqtt_address="127.0.0.1:1883", seeded=seeded, notices=())
    given = SecretStr(admin_password) if admin_password else None
    return welcome(started, LauncherSettings(admin_password=given))


@pytest.mark.parametrize("admin_password", [None, "correct horse"])
def test_nobody_is_sent_to_a_deleted_tenant(admin_password: str | None) -> None:
    seeded = Seeded(user_created=False, password=None, tenant_deleted=True)
    text = _told(seeded, admin_password=admin_password)
    assert "Tenant demo is deleted" in text
    assert "Log in as" not in text
    assert '"tenant":"demo"' not in text
    assert "twinmesh login --tenant system" in text
    assert f"{_URL}/healthz/ready" in text


def test_the_password_that_was_made_is_told() -> None:
    text = _told(Seeded(user_created=True, password="made-now"))
    assert "the password made-now (shown only this once)" in text
    assert '{"tenant":"demo","username":"admin","password":"made-now"}' in text


@pytest.mark.parametrize("created", [True, False])
def test_a_password_that_was_given_is_not_shown(created: bool) -> None:
    text = _told(Seeded(user_created=created, password=None), admin_password="correct horse")
    assert "correct horse" not in text
    assert "$TWINMESH_ADMIN_PASSWORD" in text
