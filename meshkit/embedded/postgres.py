"""PostgreSQL 18 from the wheel, its binaries called directly.

TCP on loopback with SCRAM, fsync and checksums on. Unix sockets are switched off:
nobody needs them, and so no path is bound by their limit of 107 bytes.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import psutil

from meshkit.database_doors import closing_statements
from meshkit.embedded import binaries
from meshkit.embedded.account import Account, unprivileged_account
from meshkit.embedded.part import Part, PartFailedError, until_ready
from meshkit.embedded.placement import data_folder, remove_data_folder, write_private
from meshkit.embedded.ports import free_port, is_port_free
from meshkit.embedded.process import ChildProcess

SUPERUSER = "postgres"
MIGRATOR = "twinmesh_migrator"
DATABASE = "twinmesh"

# For a machine of a few cores and a few gigabytes; durability is left as it comes: on.
_SETTINGS: Mapping[str, str] = {
    "max_connections": "150",
    "shared_buffers": "256MB",
    "effective_cache_size": "1GB",
    "maintenance_work_mem": "128MB",
    "wal_buffers": "16MB",
    "min_wal_size": "256MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    # A question over years of declared backfills locks a partition and its two indexes for each day.
    "max_locks_per_transaction": "2048",
    "timezone": "'UTC'",
    "log_timezone": "'UTC'",
    "log_line_prefix": "'%m [%p] %q%u '",
    "log_lock_waits": "on",
}
_PORT_FILE = "port"
# Each statement by itself can be repeated, since a start may be interrupted between any two, and a later
# version may have more to say. People who have a role of their own (docs/sql.md) shall write nothing, not
# even large objects, and hold up nobody, in no database.
_DOORS = "\n    ".join(closing_statements(migrator=MIGRATOR))
_MAKE_DATABASE = f"""
    SELECT 'CREATE ROLE {MIGRATOR}' WHERE to_regrole('{MIGRATOR}') IS NULL \\gexec
    ALTER ROLE {MIGRATOR} LOGIN CREATEDB CREATEROLE BYPASSRLS PASSWORD '{{password}}';
    \\connect template1
    {_DOORS}
    CREATE OR REPLACE FUNCTION public.twinmesh_array_bytes(anyarray) RETURNS bytea
        LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'byteasend';
    \\connect postgres
    REVOKE CONNECT, TEMPORARY ON DATABASE postgres, template1 FROM PUBLIC;
    SELECT 'CREATE DATABASE {DATABASE} OWNER {MIGRATOR}'
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{DATABASE}') \\gexec
    \\connect {DATABASE}
    {_DOORS}
"""  # noqa: S608 - names are constants, the password is url-safe text made here.  # nosec B608
# What a start meets for a moment after its predecessor was killed, or when somebody took the port.
_WORTH_ANOTHER_TRY = (
    "lock file",
    "pre-existing shared memory block",
    "could not create any TCP/IP sockets",
)
_TRY_SECONDS = 30.0
# Fast shutdown, immediate shutdown, and the end.
_LEFTOVER_SIGNALS = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0))
# Recovery after a crash replays up to max_wal_size.
_READY_SECONDS = 120.0


def admin_url_of(home: Path, port: int) -> str:
    """The migrator's URL of the server of `home`, for those who know its port but did not start it."""
    password = (home / "postgres" / f"{MIGRATOR}.password").read_text()
    return f"postgresql://{MIGRATOR}:{password}@127.0.0.1:{port}/{DATABASE}"


class EmbeddedPostgres(Part):
    """One PostgreSQL server with its data in `home`/postgres.

    The first start makes the cluster, the database `twinmesh` and its owner, the
    migrator role. Both passwords are generated and kept beside the data. `port` is
    picked free by the first start of this object unless given; `settings` override
    lines of postgresql.conf (values as they stand there).
    """

    name = "postgres"

    def __init__(
        self,
        *,
        home: Path,
        port: int | None = None,
        log_path: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._home = home.absolute()
        self._log_path = log_path or self._home / "logs" / "postgres.log"
        self._settings = {**_SETTINGS, **(settings or {})}
        # Only until the first success: afterwards clients know the port.
        self._picks_port = port is None
        self._port = port
        self._account: Account | None = None
        self._root: Path | None = None
        self._lock: IO[bytes] | None = None

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1; raises RuntimeError before the first start."""
        if self._port is None:
            raise RuntimeError("the port is known after the start")
        return self._port

    @property
    def admin_url(self) -> str:
        """The migrator's URL: owner of the database `twinmesh`, may create roles and databases."""
        return admin_url_of(self._home, self.port)

    @property
    def superuser_url(self) -> str:
        """The superuser's URL, for tests and repairs; the mesh itself never uses it."""
        return f"postgresql://{SUPERUSER}:{self._password(SUPERUSER)}@127.0.0.1:{self.port}/postgres"

    def _starting(self) -> Iterator[None]:
        yield from self._take_home()
        if not (self.data_dir / "PG_VERSION").exists():
            yield from self._make_cluster()
        deadline = time.monotonic() + _TRY_SECONDS
        while True:
            try:
                yield from self._start_server()
                break
            except PartFailedError as failure:
                passing = any(sign in failure.log_tail for sign in _WORTH_ANOTHER_TRY)
                if not passing or time.monotonic() > deadline:
                    raise
                if self._picks_port:
                    self._port = None
                pause = time.monotonic() + 0.3
                while time.monotonic() < pause:
                    yield
        self._picks_port = False
        write_private(self._folder / _PORT_FILE, str(self._port), self._account)
        yield from self._make_database()

    def _stopping(self) -> Iterator[None]:
        yield from super()._stopping()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def remove(self) -> None:
        """Stops the server and deletes its data."""
        self.stop()
        remove_data_folder(self._home, "postgres")

    @property
    def _folder(self) -> Path:
        if self._root is None:
            raise RuntimeError("the folder is known after the start")
        return self._root

    @property
    def data_dir(self) -> Path:
        """The server's data folder."""
        return self._folder / "data"

    def _password(self, role: str) -> str:
        return (self._folder / f"{role}.password").read_text()

    def _take_home(self) -> Iterator[None]:
        """Finds account and folder, locks it, and ends what an earlier owner left running."""
        if self._lock is not None:
            return
        self._account = unprivileged_account()
        self._home.mkdir(parents=True, exist_ok=True)
        self._root = data_folder(self._home, "postgres", self._account)
        # In the home, which is the caller's own, not in the account's folder.
        lock = (self._home / "postgres.lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise PartFailedError(self.name, f"{self._root} is in use by another launcher") from error
        self._lock = lock
        yield from self._end_leftover()

    def _end_leftover(self) -> Iterator[None]:
        """A server whose owner was killed may still be closing, or may not have noticed.

        The server itself would take anybody who has the id in the lock file for its
        predecessor: a stranger who got the same id, or a dead process nobody reaped.
        """
        lock_file = self.data_dir / "postmaster.pid"
        if not lock_file.exists():
            return
        for number, seconds in _LEFTOVER_SIGNALS:
            deadline = time.monotonic() + seconds
            signalled: set[int] = set()
            while left := self._processes_on_data():
                for process in left:
                    if process.pid not in signalled:
                        signalled.add(process.pid)
                        _send(process, number)
                if time.monotonic() > deadline:
                    break
                yield
            else:
                lock_file.unlink(missing_ok=True)
                return
        raise PartFailedError(self.name, f"processes of an earlier start still use {self.data_dir}")

    def _processes_on_data(self) -> list[psutil.Process]:
        """The server, or its children if they outlived it: all of them work in the data folder."""
        found: dict[int, tuple[psutil.Process, int]] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(self.data_dir):
                    found[process.pid] = (process, process.ppid())
        return [process for process, parent in found.values() if parent not in found]

    def _make_cluster(self) -> Iterator[None]:
        folder = self._folder
        # A first start that was interrupted leaves a folder that initdb refuses.
        shutil.rmtree(self.data_dir, ignore_errors=True)
        for role in (SUPERUSER, MIGRATOR):
            write_private(folder / f"{role}.password", secrets.token_urlsafe(32), self._account)
        half_made = folder / "data.new"
        shutil.rmtree(half_made, ignore_errors=True)
        command = [
            str(binaries.postgres_bin(self._account) / "initdb"),
            f"--pgdata={half_made}",
            f"--username={SUPERUSER}",
            f"--pwfile={folder / f'{SUPERUSER}.password'}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-locale",
        ]
        initdb = ChildProcess(
            command=command, log_path=self._log_path, environment=self._environment(), account=self._account
        )
        initdb.spawn()
        try:
            while initdb.exit_code is None:
                yield
        finally:
            initdb.kill()
        if initdb.exit_code != 0:
            raise PartFailedError(
                self.name, f"initdb ended with code {initdb.exit_code}", log_tail=initdb.log_tail()
            )
        half_made.rename(self.data_dir)

    def _start_server(self) -> Iterator[None]:
        if self._port is None:
            self._port = self._port_of_before() or free_port()
        lines = {
            **self._settings,
            "listen_addresses": "'127.0.0.1'",
            "port": str(self._port),
            "unix_socket_directories": "''",
        }
        text = "".join(f"{name} = {value}\n" for name, value in lines.items())
        write_private(self.data_dir / "postgresql.conf", text, self._account)
        self._process = ChildProcess(
            command=[str(binaries.postgres_bin(self._account) / "postgres"), "-D", str(self.data_dir)],
            log_path=self._log_path,
            environment=self._environment(),
            account=self._account,
            death_signal=signal.SIGINT,
            # Fast, then immediate: both leave a state from which the next start recovers.
            stop_signals=((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0)),
        )
        self._process.spawn()
        yield from until_ready(self._process, self.name, self.is_ready, seconds=_READY_SECONDS)

    def _port_of_before(self) -> int | None:
        """Return the port of the last start, which people may have noted, unless it is taken."""
        try:
            port = int((self._folder / _PORT_FILE).read_text())
        except (OSError, ValueError):  # Of no start yet, or the power went while it was written.
            return None
        return port if is_port_free(port) else None

    def is_ready(self) -> bool:
        """Whether connections are accepted, by line eight of the server's pid file, as pg_ctl reads it."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        if self._process is None or len(lines) < 8 or lines[0].strip() != str(self._process.pid):
            return False
        return lines[7].strip() == "ready"

    def _make_database(self) -> Iterator[None]:
        """Creates migrator and database unless an earlier start did so in the same way."""
        done = self._folder / "database.made"
        way = hashlib.sha256(_MAKE_DATABASE.encode()).hexdigest()
        if done.exists() and done.read_text() == way:
            return
        script = _MAKE_DATABASE.format(password=self._password(MIGRATOR))
        command = [
            str(binaries.postgres_bin(self._account) / "psql"),
            "--no-psqlrc",
            "--quiet",
            "--set=ON_ERROR_STOP=1",
            "--host=127.0.0.1",
            f"--port={self.port}",
            f"--username={SUPERUSER}",
            "postgres",
        ]
        with tempfile.TemporaryFile("w+") as talk:
            # A file takes the script whole, so that this never waits for psql to read.
            talk.write(script)
            talk.seek(0)
            environment = {**self._environment(), "PGPASSWORD": self._password(SUPERUSER)}
            psql = subprocess.Popen(
                command,
                stdin=talk,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                text=True,
            )
            while psql.poll() is None:
                yield
            output, _ = psql.communicate()
        if psql.returncode != 0:
            raise PartFailedError(self.name, "the database could not be made", log_tail=output)
        write_private(done, way, self._account)

    def _environment(self) -> dict[str, str]:
        # PG* variables of the caller would point clients and initdb elsewhere.
        foreign = ("PG", "LC_", "LANG")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {**kept, "LC_ALL": "C", "HOME": str(self._folder)}


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
