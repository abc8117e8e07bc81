"""`twinmesh users`, `twinmesh roles`, `twinmesh tenants` and `twinmesh api-keys` against auth_svc itself."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from auth_svc.roles import Role, built_in_roles
from meshkit.embedded import free_ports
from meshkit.testing import identities
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import PASSWORD, AuthApp, running_auth
from twinmesh_cli.main import app

Command = Callable[..., Awaitable[Result]]


@pytest.fixture
async def auth(database: TestDatabase) -> AsyncIterator[AuthApp]:
    async with running_auth(database) as running:
        yield running


@pytest.fixture
async def command(auth: AuthApp, tmp_path: Path) -> AsyncIterator[Command]:
    """Runs a command as whoever logged in last."""
    (port,) = free_ports(1)
    environment = {
        "TWINMESH_GATEWAY": f"127.0.0.1:{port}",
        "TWINMESH_CREDENTIALS": str(tmp_path / "credentials.json"),
        "COLUMNS": "200",
    }

    async def run(*arguments: str, stdin: str = "") -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, list(arguments), input=stdin, env=environment)

    inner = int(auth.address.rpartition(":")[2])
    async with identities.plain_way_in("auth_svc", inner, listen=port):
        yield run


async def _log_in(command: Command, username: str, password: str) -> Result:
    return await command("login", "--username", username, "--password-stdin", stdin=f"{password}\n")


@pytest.fixture
async def administrator(command: Command) -> None:
    assert (await _log_in(command, "admin", PASSWORD)).exit_code == 0


async def _said(command: Command, *arguments: str, stdin: str = "") -> str:
    done = await command(*arguments, stdin=stdin)
    assert done.exit_code == 0, done.output
    return done.output


def _one_time(said: str) -> str:
    """Return the password that was told; what the service logs meanwhile stands there too."""
    (password,) = re.findall(r"^one-time password, .*: (\S+)$", said, re.MULTILINE)
    return str(password)


@pytest.mark.usefixtures("administrator")
async def test_who_is_invited_chooses_a_password(command: Command) -> None:
    told = await _said(command, "users", "create", "ada", "--role", "viewer", "--display-name", "Ada L.")
    one_time = _one_time(told)
    listed = await _said(command, "users")
    assert "one-time password until" in listed
    assert "Ada L." in listed
    assert one_time not in listed
    entered = await _log_in(command, "ada", one_time)
    assert "twinmesh users password" in entered.output
    denied = await command("users")
    assert denied.exit_code == 1
    assert "user:read" in denied.stderr
    await _said(command, "users", "password", "--password-stdin", stdin=f"{one_time}\nbattery staple\n")
    # The session of before is forgotten with its tokens.
    assert "twinmesh login" in (await command("users")).stderr
    entered = await _log_in(command, "ada", "battery staple")
    assert (entered.exit_code, "choose a password" in entered.output) == (0, False)


@pytest.mark.usefixtures("administrator")
async def test_a_user_is_changed_step_by_step(auth: AuthApp, command: Command) -> None:
    await auth.add_user("demo", "olga", Role.OPERATOR)
    assert "olga" in await _said(command, "users", "--role", "operator")
    assert "olga" not in await _said(command, "users", "--role", "viewer")
    assert await _said(command, "users", "update", "olga", "--role", "viewer") == "olga is viewer\n"
    assert await _said(command, "users", "update", "olga", "--disable") == "olga is viewer, disabled\n"
    assert await _said(command, "users", "update", "olga", "--enable") == "olga is viewer\n"
    await _said(command, "users", "reset-password", "olga", "--password-stdin", stdin="battery staple\n")
    told = await _said(command, "users", "reset-password", "olga")
    assert (await _log_in(command, "olga", told.split()[-1])).exit_code == 0
    await _log_in(command, "admin", PASSWORD)
    await _said(command, "users", "delete", "olga")
    assert "olga" not in await _said(command, "users")


@pytest.mark.usefixtures("administrator")
async def test_roles_are_made_given_changed_and_removed(auth: AuthApp, command: Command) -> None:
    assert (await _said(command, "roles")).count("built in") == len(built_in_roles("demo"))
    made = await _said(
        command, "roles", "create", "night-shift", "--permission", "twin:read", "--permission", "device:write"
    )
    assert made == "night-shift carries device:write twin:read\n"
    await auth.add_user("demo", "nina", Role.VIEWER)
    await _said(command, "users", "update", "nina", "--role", "night-shift")
    changed = await _said(command, "roles", "update", "night-shift", "--permission", "twin:read")
    assert changed == "night-shift carries twin:read\n"
    await _said(command, "roles", "update", "night-shift", "--display-name", "Night shift")
    assert "Night shift" in await _said(command, "roles")
    in_use = await command("roles", "delete", "night-shift")
    assert (in_use.exit_code, "still has users" in in_use.stderr) == (1, True)
    await _said(command, "users", "delete", "nina")
    await _said(command, "roles", "delete", "night-shift")
    assert "night-shift" not in await _said(command, "roles")


def _secret(told: str) -> str:
    return told.splitlines()[0].split()[-1]


@pytest.mark.usefixtures("administrator")
async def test_api_keys_are_made_rotated_and_deleted(auth: AuthApp, command: Command) -> None:
    told = await _said(
        command,
        "api-keys",
        "create",
        "Gateway 7",
        "--permission",
        "twin:read",
        "--expire",
        "2090-01-01",
        "--allow",
        "127.0.0.0/8",
        "--device",
        "pump-1",
        "--gateway",
        "hub-1",
    )
    first, signing = (line.split()[-1] for line in told.splitlines())
    assert signing.startswith(f"tms_{first.removeprefix('tmk_').rpartition('_')[0]}_")
    key_id = first.split("_")[2]
    second = _secret(await _said(command, "api-keys", "rotate", key_id, "--overlap-hours", "1.5"))
    for secret in (first, second):
        assert (await auth.check(f"Bearer {secret}")).HasField("ok_response")
    listed = await _said(command, "api-keys")
    for shown in (
        key_id,
        "Gateway 7",
        "2090-01-01T00:00:00",
        "127.0.0.0/8",
        "pump-1",
        "hub-1/*",
        "twin:read",
    ):
        assert shown in listed
    third = _secret(await _said(command, "api-keys", "rotate", key_id, "--overlap-hours", "0"))
    for secret, is_good in ((first, False), (second, False), (third, True)):
        assert (await auth.check(f"Bearer {secret}")).HasField("ok_response") == is_good
    await _said(command, "api-keys", "delete", key_id)
    assert key_id not in await _said(command, "api-keys")
    absent = await command("api-keys", "rotate", key_id, "--overlap-hours", "0")
    assert (absent.exit_code, "does not exist" in absent.stderr) == (1, True)


@pytest.mark.usefixtures("administrator")
async def test_what_is_refused_says_what_to_do(command: Command) -> None:
    for arguments, told in (
        (("users", "update", "admin"), "--role"),
        (("roles", "update", "viewer"), "--permission"),
        (("users", "delete", "admin"), "give another user such a role first"),
        (("users", "reset-password", "admin"), "ChangePassword"),
        (("users", "create", "a/b", "--role", "viewer"), "user.username"),
        (("roles", "create", "mine", "--permission", "profile:read"), "you do not hold profile:read"),
        (("roles", "delete", "viewer"), "built in"),
    ):
        done = await command(*arguments)
        assert (done.exit_code, told in done.stderr) == (1, True), (arguments, done.output)


async def test_an_operator_makes_suspends_and_resumes_a_tenant(auth: AuthApp, command: Command) -> None:
    await auth.add_user("system", "operator", Role.INSTALLATION_ADMIN)

    async def log_in(tenant: str, username: str, password: str) -> Result:
        arguments = ("login", "--tenant", tenant, "--username", username, "--password-stdin")
        return await command(*arguments, stdin=f"{password}\n")

    await log_in("system", "operator", PASSWORD)
    one_time = _one_time(await _said(command, "tenants", "create", "acme", "--administrator", "root"))
    assert "acme" in await _said(command, "tenants")
    assert (await _said(command, "tenants", "suspend", "acme")).startswith("acme is suspended since ")
    assert "suspended since" in await _said(command, "tenants")
    shut_out = await log_in("acme", "root", one_time)
    assert (shut_out.exit_code, "suspended" in shut_out.stderr) == (1, True), shut_out.output
    assert await _said(command, "tenants", "resume", "acme") == "acme is resumed\n"
    assert "suspended" not in await _said(command, "tenants")
    assert "twinmesh users password" in (await log_in("acme", "root", one_time)).output
    assert "tenant:admin" in (await command("tenants")).stderr
