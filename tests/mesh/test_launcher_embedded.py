"""PostgreSQL, NATS and Envoy as the launcher runs them: real processes, killed and started again."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import nats
import psutil
import pytest

from meshkit.embedded import (
    EmbeddedEnvoy,
    EmbeddedNats,
    EmbeddedPostgres,
    Part,
    PartFailedError,
    binaries,
    bound_log,
    can_reach,
    free_port,
    free_ports,
    placement,
    unprivileged_account,
)
from meshkit.testing.mesh import eventually


def _kill(part: Part) -> None:
    assert part.process is not None
    assert part.process.pid is not None
    os.kill(part.process.pid, signal.SIGKILL)


async def _until_dead(part: Part) -> None:
    await asyncio.to_thread(eventually, lambda: not part.running, f"{part.name} is gone")


async def _fetch(url: str, query: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


@pytest.fixture
def closed_home() -> Iterator[Path]:
    """A home with a long path, below a folder that only its owner may enter."""
    top = Path(tempfile.mkdtemp(prefix="twinmesh-closed-"))
    home = top.joinpath(*["a-folder-with-quite-a-long-name"] * 6, "home")
    home.mkdir(parents=True)
    yield home
    shutil.rmtree(top)


async def test_postgres_of_an_earlier_version_is_closed_to_what_everybody_could_do(short_home: Path) -> None:
    async with EmbeddedPostgres(home=short_home) as postgres:
        superuser_url = postgres.superuser_url.removesuffix("/postgres") + "/twinmesh"
        await _fetch(superuser_url, "GRANT EXECUTE ON FUNCTION pg_advisory_lock(bigint) TO PUBLIC")
        (short_home / "postgres" / "database.made").write_text("")
        postgres.stop()
        await postgres.start_async()
        assert not await _fetch(
            superuser_url,
            "SELECT has_function_privilege('pg_monitor', 'pg_advisory_lock(bigint)', 'EXECUTE')",
        )
        assert await _fetch(postgres.admin_url, "SELECT pg_try_advisory_lock(1)")


async def test_postgres_keeps_what_was_committed_when_it_is_killed(short_home: Path) -> None:
    async with EmbeddedPostgres(home=short_home) as postgres:
        connection = await asyncpg.connect(postgres.admin_url)
        await connection.execute("CREATE TABLE kept (n integer)")
        await connection.execute("INSERT INTO kept SELECT generate_series(1, 1000)")
        port = postgres.port
        _kill(postgres)
        await _until_dead(postgres)
        await connection.close()

        # At once: the lock file and the children of the old server may still be there.
        await postgres.start_async()

        assert postgres.port == port
        assert await _fetch(postgres.admin_url, "SELECT count(*) FROM kept") == 1000
        settings = "SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings WHERE name IN"
        durable = f"{settings} ('data_checksums', 'fsync', 'full_page_writes', 'synchronous_commit')"
        assert await _fetch(postgres.admin_url, durable) == "on on on on"


async def test_postgres_keeps_its_port_from_launcher_to_launcher_unless_it_is_taken(short_home: Path) -> None:
    async with EmbeddedPostgres(home=short_home) as postgres:
        port = postgres.port
    async with EmbeddedPostgres(home=short_home) as postgres:
        assert postgres.port == port
    with socket.socket() as stranger:
        # As any server does: connections of before may still be waiting out their end on this port.
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        async with EmbeddedPostgres(home=short_home) as postgres:
            assert postgres.port != port


async def test_postgres_asks_for_a_password_and_listens_on_loopback_only(short_home: Path) -> None:
    async with EmbeddedPostgres(home=short_home) as postgres:
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(f"postgresql://postgres:guess@127.0.0.1:{postgres.port}/postgres")
        listening = await _fetch(
            postgres.superuser_url,
            "SELECT current_setting('listen_addresses') || current_setting('unix_socket_directories')",
        )
        rights = "rolsuper::text || rolcreaterole || rolbypassrls"
        migrator = await _fetch(
            postgres.admin_url, f"SELECT {rights} FROM pg_roles WHERE rolname = current_user"
        )
    assert listening == "127.0.0.1"
    assert migrator == "falsetruetrue"


async def test_a_second_server_in_the_same_home_is_refused(short_home: Path) -> None:
    async with EmbeddedPostgres(home=short_home) as postgres:
        with pytest.raises(PartFailedError, match="in use by another launcher"):
            await EmbeddedPostgres(home=short_home).start_async()
        assert await _fetch(postgres.admin_url, "SELECT 1") == 1


async def test_a_server_whose_launcher_was_killed_gives_way_to_the_next(short_home: Path) -> None:
    script = (
        "import os, signal; from pathlib import Path; from meshkit.embedded import EmbeddedPostgres\n"
        f"postgres = EmbeddedPostgres(home=Path({str(short_home)!r})); postgres.start()\n"
        "print(postgres.process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL

    async with EmbeddedPostgres(home=short_home) as postgres:
        assert await _fetch(postgres.admin_url, "SELECT 1") == 1
        with contextlib.suppress(psutil.NoSuchProcess):
            # Nobody may have reaped it.
            assert psutil.Process(int(killed.stdout)).status() == psutil.STATUS_ZOMBIE


async def test_an_interrupted_first_start_is_made_good(short_home: Path) -> None:
    postgres = EmbeddedPostgres(home=short_home)
    starting = asyncio.create_task(postgres.start_async())
    half_made = short_home / "postgres" / "data.new"
    waiting = asyncio.to_thread(eventually, half_made.exists, "initdb is at work")
    await asyncio.gather(waiting)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await postgres.stop_async()

    async with EmbeddedPostgres(home=short_home) as again:
        assert await _fetch(again.admin_url, "SELECT current_database()") == "twinmesh"


async def test_a_setting_that_postgres_refuses_is_told_with_its_log(short_home: Path) -> None:
    postgres = EmbeddedPostgres(home=short_home, settings={"shared_buffers": "'plenty'"})

    with pytest.raises(PartFailedError) as failure:
        await postgres.start_async()
    await postgres.stop_async()

    assert "shared_buffers" in str(failure.value)


async def test_root_is_left_behind_even_below_a_closed_folder(closed_home: Path) -> None:
    account = unprivileged_account()
    if account is None:
        pytest.skip("an ordinary user keeps everything in the home")
    assert not can_reach(account, closed_home)
    postgres, nats_server = EmbeddedPostgres(home=closed_home), EmbeddedNats(home=closed_home)
    try:
        for part in (postgres, nats_server):
            await part.start_async()
            assert part.process is not None
            assert psutil.Process(part.process.pid).uids().real == account.uid
        await _fetch(postgres.admin_url, "CREATE TABLE kept (n integer)")
        await postgres.stop_async()

        async with EmbeddedPostgres(home=closed_home) as again:
            assert await _fetch(again.admin_url, "SELECT count(*) FROM kept") == 0
        data = (closed_home / "postgres").resolve()
        assert data.stat().st_mode & 0o777 == 0o700
    finally:
        nats_server.remove()
        postgres.remove()
    assert not data.exists()


async def test_binaries_below_a_closed_folder_are_copied_once(
    closed_home: Path, short_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = unprivileged_account()
    if account is None:
        pytest.skip("an ordinary user runs binaries where they are")
    installed = binaries.postgres_bin(None).parent.parent
    closed = closed_home / installed.name
    await asyncio.to_thread(shutil.copytree, installed, closed)
    libraries = installed.with_name(f"{installed.name}.libs")
    await asyncio.to_thread(shutil.copytree, libraries, closed_home / libraries.name)
    monkeypatch.setattr(binaries, "_package_folder", lambda _: closed)
    monkeypatch.setattr(placement, "SHARED_ROOT", short_home / "shared")

    async with EmbeddedPostgres(home=closed_home) as postgres:
        assert await _fetch(postgres.admin_url, "SELECT 1") == 1
        assert postgres.process is not None
        first = postgres.process.command[0]
    shutil.rmtree(closed)
    closed.mkdir()

    assert first.startswith(str(short_home / "shared" / "bin"))
    assert str(binaries.postgres_bin(account) / "postgres") == first


async def test_nats_asks_for_a_password_and_keeps_its_streams(short_home: Path) -> None:
    async with EmbeddedNats(home=short_home) as server:
        client = await nats.connect(server.url)
        streams = client.jetstream()
        await streams.add_stream(name="KEPT", subjects=["kept.>"])
        await streams.publish("kept.one", b"1")
        await client.close()
        _kill(server)
        await _until_dead(server)

        await server.start_async()

        client = await nats.connect(server.url)
        assert (await client.jetstream().stream_info("KEPT")).state.messages == 1
        await client.close()
        greeted, refused = await asyncio.to_thread(_nats_without_password, server.port)
    assert b'"auth_required":true' in greeted
    assert b"Authorization Violation" in refused


def _nats_without_password(port: int) -> tuple[bytes, bytes]:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
        connection.makefile("rwb") as lines,
    ):
        greeting = lines.readline()
        lines.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
        lines.flush()
        # Whoever is no user of the mesh may be a device: somebody is asked first.
        return greeting, next(line for line in lines if line.startswith(b"-ERR"))


def _mqtt_connect(port: int, *, user: str = "", password: str = "") -> bytes:
    """Send MQTT 3.1.1 CONNECT; return what comes back (CONNACK is 20 02 00 CODE)."""

    def text(value: str) -> bytes:
        return len(value).to_bytes(2, "big") + value.encode()

    flags = 0xC2 if user else 0x02
    body = text("MQTT") + bytes([4, flags, 0, 30]) + text("probe")
    if user:
        body += text(user) + text(password)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(bytes([0x10, len(body)]) + body)
        return connection.recv(4)


async def test_nobody_comes_in_by_mqtt(short_home: Path) -> None:
    port = free_port()
    async with EmbeddedNats(home=short_home, mqtt=("127.0.0.1", port)) as server:
        user, _, rest = server.url.removeprefix("nats://").partition(":")
        password = rest.partition("@")[0]

        anonymous = await asyncio.to_thread(_mqtt_connect, port)
        service = await asyncio.to_thread(_mqtt_connect, port, user=user, password=password)

    not_authorized = b"\x20\x02\x00\x05"
    assert (anonymous, service) == (not_authorized, not_authorized)


def _static_envoy(*, admin_port: int, port: int) -> dict[str, Any]:
    """The smallest gateway: it answers every request by itself."""
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3"
        ".HttpConnectionManager",
        "stat_prefix": "edge",
        "access_log": [
            {
                "name": "envoy.access_loggers.file",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                    "path": "/dev/stdout",
                },
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 204}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
                },
            }
        ],
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin_port}}},
        "static_resources": {
            "listeners": [{"name": "edge", "address": address, "filter_chains": [{"filters": filters}]}]
        },
    }


async def test_envoy_answers_again_after_it_was_killed(closed_home: Path) -> None:
    admin_port, port = free_ports(2)
    descriptor = closed_home / "contract"
    descriptor.write_bytes(b"as generated")
    seen: list[bytes] = []

    def render(readable: Path) -> dict[str, Any]:
        seen.append(readable.read_bytes())
        return _static_envoy(admin_port=admin_port, port=port)

    envoy = EmbeddedEnvoy(home=closed_home, descriptor=descriptor, render=render, concurrency=1)
    log = closed_home / "logs" / "envoy.log"
    try:
        async with envoy, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.get("/")).status_code == 204
            _kill(envoy)
            await _until_dead(envoy)
            await envoy.start_async()
            with log.open("a") as lines:
                lines.write("moved aside\n")
            assert bound_log(log, limit=1)
            assert (await client.get("/")).status_code == 204
    finally:
        envoy.remove()
    assert seen == [b"as generated", b"as generated"]
    # The access log goes to standard output, which Envoy opens anew as its own user.
    written = log.read_text()
    assert '"GET / HTTP/1.1" 204' in written
    assert "moved aside" not in written
    assert "\0" not in written


async def test_envoy_that_cannot_listen_says_why(short_home: Path) -> None:
    descriptor = short_home / "contract"
    descriptor.write_bytes(b"")
    config = _static_envoy(admin_port=free_port(), port=1)
    config["static_resources"]["listeners"][0]["address"]["socket_address"]["address"] = "198.51.100.1"
    envoy = EmbeddedEnvoy(home=short_home, descriptor=descriptor, render=lambda _: config)

    with pytest.raises(PartFailedError, match="cannot bind"):
        await envoy.start_async()
    await envoy.stop_async()


async def test_any_number_run_side_by_side(short_home: Path) -> None:
    homes = [short_home / name for name in ("one", "two", "three")]
    for home in homes:
        home.mkdir(mode=0o755)
    servers = [EmbeddedNats(home=home) for home in homes]
    try:
        await asyncio.gather(*(server.start_async() for server in servers))
        assert len({server.port for server in servers}) == len(servers)
        assert all(server.is_ready() for server in servers)
    finally:
        await asyncio.gather(*(server.stop_async() for server in servers))
