"""A whole mesh for tests and benches, driven as its user would: by command line and HTTP."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil

from meshkit import secrets as mesh_secrets
from meshkit.embedded import free_ports
from meshkit.service_identity import ServiceIdentity, channel_credentials, channel_options

# Longer than any command gives up after.
_COMMAND_TIMEOUT_S = 150


@dataclass(frozen=True)
class Mesh:
    """A mesh in a home of its own."""

    home: Path
    port: int
    environment: dict[str, str]
    password: str

    @property
    def url(self) -> str:
        """Return the gateway's base URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def mqtt_port(self) -> int:
        """Return the port for MQTT on 127.0.0.1."""
        return int(self.environment["TWINMESH_MQTT_PORT"])

    @property
    def device_port(self) -> int:
        """Return the port on 127.0.0.1 where devices show their certificates."""
        return int(self.environment["TWINMESH_DEVICE_PORT"])

    @property
    def address(self) -> str:
        """Return the gateway's host:port, for gRPC."""
        return f"127.0.0.1:{self.port}"

    def twinmesh(
        self, *arguments: str, check: bool = True, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of the command line against this mesh."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"twinmesh {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def command(self, *arguments: str) -> list[str]:
        """Return what starts a command of the command line."""
        return [sys.executable, "-m", "twinmesh_cli", *arguments]

    def status(self) -> dict[str, Any]:
        """Return what `twinmesh status` tells."""
        answer: dict[str, Any] = json.loads(self.twinmesh("status", "--json", check=False).stdout)
        return answer

    def part(self, name: str) -> dict[str, Any]:
        """Return what `twinmesh status` tells of one part."""
        found: dict[str, Any] = next(part for part in self.status()["parts"] if part["name"] == name)
        return found

    def parts(self, service: str) -> list[dict[str, Any]]:
        """Return what `twinmesh status` tells of every process of a service."""
        return [part for part in self.status()["parts"] if part["service"] == service]

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a part, such as SIGTERM or SIGSTOP."""
        psutil.Process(self.part(name)["pid"]).send_signal(number)

    def kill(self, name: str) -> None:
        """End a part as a crash would."""
        self.signal(name, signal.SIGKILL)

    def database_url(self, user: str = "twinmesh_migrator") -> str:
        """Return a URL of the mesh's database, for looking behind the gateway."""
        password = (self.home / "postgres" / f"{user}.password").read_text()
        return f"postgresql://{user}:{password}@127.0.0.1:{self.part('postgres')['port']}/twinmesh"

    @property
    def root_secret(self) -> bytes:
        """Return the root secret that the mesh made for itself."""
        return mesh_secrets.decode_root((self.home / "secrets" / "mesh").read_text().strip())

    def role_url(self, role: str) -> str:
        """Return a URL of the mesh's database with a service's role."""
        password = mesh_secrets.derive_text(self.root_secret, f"database-role/{role}")
        return f"postgresql://{role}:{password}@127.0.0.1:{self.part('postgres')['port']}/twinmesh"

    def add_tenant(self, tenant: str) -> None:
        """Make a tenant with an administrator who has the mesh's password."""
        subprocess.run(
            [sys.executable, "-m", "auth_svc.bootstrap"],
            env={
                **self.environment,
                "TWINMESH_SERVICE_DATABASE_URL": self.role_url("twinmesh_auth"),
                "TWINMESH_TENANT": tenant,
            },
            capture_output=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=True,
        )

    def client(self, token: str = "") -> httpx.AsyncClient:
        """Return a JSON client with a token."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=30)

    def service_address(self, service: str) -> str:
        """Return where a service's first process listens, host:port."""
        return f"127.0.0.1:{self.parts(service)[0]['port']}"

    def service_channel(self, service: str, address: str) -> grpc.aio.Channel:
        """Open a channel to a service as the gateway does."""
        shown = ServiceIdentity(self.home / "trust").present()
        return grpc.aio.secure_channel(address, channel_credentials(shown), options=channel_options(service))

    def log_in(self, username: str = "admin", tenant: str = "demo") -> str:
        """Return an access token."""
        answer = httpx.post(
            f"{self.url}/v1/auth/login",
            json={"tenant": tenant, "username": username, "password": self.password},
            timeout=30,
        )
        answer.raise_for_status()
        token: str = answer.json()["accessToken"]
        return token

    def api_key(self) -> str:
        """Return an API key that may send and read, and does not end."""
        return self._new_key()["secret"]

    def signing_secret(self) -> str:
        """Return the signing secret of another such key."""
        return self._new_key()["signingSecret"]

    def _new_key(self) -> dict[str, str]:
        answer = httpx.post(
            f"{self.url}/v1/apiKeys",
            json={"displayName": "for a test or bench"},
            headers={"authorization": f"Bearer {self.log_in()}"},
            timeout=30,
        )
        answer.raise_for_status()
        made: dict[str, str] = answer.json()
        return made


def start_mesh(home: Path, **settings: str) -> Mesh:
    """Start a mesh in the background and wait until it is ready."""
    port, mqtt_port, device_port = free_ports(3)
    password = secrets.token_urlsafe(12)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("TWINMESH_", "OTEL_"))},
        "TWINMESH_HOME": str(home / "home"),
        "TWINMESH_GATEWAY_PORT": str(port),
        "TWINMESH_MQTT_PORT": str(mqtt_port),
        "TWINMESH_DEVICE_PORT": str(device_port),
        "TWINMESH_ADMIN_PASSWORD": password,
        # Tests and benches send what they look at themselves.
        "TWINMESH_SIMULATE": "false",
        "TWINMESH_CREDENTIALS": str(home / "credentials.json"),
        **settings,
    }
    mesh = Mesh(home / "home", port, environment, password)
    mesh.twinmesh("up", "--detach")
    return mesh


@contextmanager
def own_mesh(**settings: str) -> Iterator[Mesh]:
    """Start a mesh in a home of its own and end it with the context."""
    home = Path(tempfile.mkdtemp(prefix="twinmesh-own-"))
    home.chmod(0o755)
    mesh = start_mesh(home, **settings)
    try:
        yield mesh
    finally:
        mesh.twinmesh("down")
        shutil.rmtree(home, ignore_errors=True)


def eventually(condition: Callable[[], bool], what: str, *, seconds: float = 30) -> None:
    """Wait for something that another process brings about."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"never came true: {what}")
        time.sleep(0.05)
