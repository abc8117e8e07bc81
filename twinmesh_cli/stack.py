"""The whole mesh of one home: which parts there are, and in which order."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import httpx
import nats
import nats.errors
from pydantic import SecretStr

from gateway.contract import CONTRACT
from gateway.render import render
from gateway.settings import (
    DeviceDoor,
    Endpoint,
    GatewayIdentity,
    GatewaySettings,
    Upstream,
    parse_origins,
)
from meshkit import secrets
from meshkit.embedded import (
    EmbeddedEnvoy,
    EmbeddedNats,
    EmbeddedPostgres,
    Part,
    PartFailedError,
    free_ports,
    is_port_free,
)
from meshkit.migrate import MigrationError
from meshkit.service_identity import ServiceIdentity
from twinmesh_cli import encryption
from twinmesh_cli.ca import authority_for
from twinmesh_cli.database import DatabaseAwayError, Migrated, is_tenant_deleted, migrate
from twinmesh_cli.home import Home, mesh_secret
from twinmesh_cli.identities import LAUNCHER, issued_identities
from twinmesh_cli.processes import Surroundings, service_ports, service_processes
from twinmesh_cli.progress import Reporter
from twinmesh_cli.seeding import Seeded, issue_simulator_key, seed
from twinmesh_cli.service import ServiceProcess
from twinmesh_cli.settings import LauncherSettings
from twinmesh_cli.simulator import Simulator
from twinmesh_cli.state import LauncherState, PartRecord, ProcessIdentity, end_processes
from twinmesh_cli.supervisor import Supervised, Supervisor

_OTLP = "otlp"
_ANSWER_SECONDS = 30.0
_NATS_SECONDS = 5.0


@dataclass(frozen=True)
class Started:
    """What there is to tell once the mesh is ready."""

    gateway_url: str
    mqtt_address: str | None  # None: MQTT is closed.
    seeded: Seeded
    notices: tuple[str, ...]


class Stack:
    """One running mesh. Use: `await start()`, wait, `await stop()`; the home must be locked."""

    def __init__(self, *, settings: LauncherSettings, home: Home, reporter: Reporter) -> None:
        self._settings = settings
        self._home = home
        self._reporter = reporter
        self._secret = mesh_secret(settings, home)
        self._supervisor = Supervisor(changed=self._on_change, tell=reporter.notice)
        self._notices: list[str] = []
        self._ready = False
        self._renewal = AsyncExitStack()
        self._launcher = ProcessIdentity.own()
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> Started:
        """Brings everything up.

        Raises:
            PartFailedError: a part could not start.
        """
        self._end_predecessor()
        self._write_state()
        await self._look_before()
        authority = authority_for(self._settings, self._home)
        trust = encryption.make_trust(self._settings, self._home, authority)
        issued = issued_identities(authority, self._home, gateway=trust.place, tell=self._reporter.notice)
        await self._renewal.enter_async_context(issued)
        door = self._device_door(trust.folder)
        facts = await self._start_servers(trust.folder)
        migrated = await self._migrate(facts)
        seeded = await self._seed(facts, migrated)
        ports = await self._start_services(facts)
        await self._supervisor.start([self._envoy(facts, ports, door, trust.edge_secret)])
        await self._until_answering()
        self._keeper = asyncio.create_task(encryption.keep(trust, facts.nats, tell=self._reporter.notice))
        if self._settings.wants_simulation and not seeded.tenant_deleted:
            await self._start_simulator(facts)
        self._ready = True
        self._write_state()
        self._reporter.step("mesh", "ready")
        return Started(
            gateway_url=self._settings.gateway_url,
            mqtt_address=self._settings.mqtt_address if facts.nats and facts.nats.speaks_mqtt else None,
            seeded=seeded,
            notices=tuple(self._notices),
        )

    async def stop(self) -> None:
        """Stops everything, what was started last first: the gateway early, the database last."""
        self._ready = False
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._supervisor.stop()
        await self._renewal.aclose()
        self._home.state.unlink(missing_ok=True)

    def _end_predecessor(self) -> None:
        left = LauncherState.read(self._home.state)
        ended = end_processes(left) if left else []
        if ended:
            self._reporter.notice(f"ended what an earlier launcher had left running: {', '.join(ended)}")

    async def _look_before(self) -> None:
        """Finds what would fail later with a message that is harder to understand."""
        settings = self._settings
        if not is_port_free(settings.gateway_port, host=settings.bind):
            raise PartFailedError(
                "envoy",
                f"port {settings.gateway_port} on {settings.bind} is in use or not allowed",
                advice="Set TWINMESH_GATEWAY_PORT to a free port.",
            )
        for notice in encryption.notices(settings):
            self._note(notice)
        if settings.nats_url is not None:
            await _try_nats(settings.nats_url.get_secret_value())

    def _mqtt_listener(self) -> tuple[str, int] | None:
        port = self._settings.mqtt_port
        return (self._settings.bind, port) if self._is_open(port, "mqtt_port", "nats", "MQTT") else None

    def _device_door(self, trust: Path) -> DeviceDoor | None:
        port = self._settings.device_port
        if not self._is_open(port, "device_port", "envoy", "the listener for devices"):
            return None
        return DeviceDoor(port=port, trust=trust)

    def _is_open(self, port: int, setting: str, part: str, what: str) -> bool:
        """Whether one of the ports is free that the mesh does without unless somebody has set it."""
        name = f"TWINMESH_{setting.upper()}"
        if is_port_free(port, host=self._settings.bind):
            return True
        if setting in self._settings.model_fields_set:
            raise PartFailedError(
                part,
                f"port {port} on {self._settings.bind} is in use or not allowed",
                advice=f"Set {name} to a free port.",
            )
        self._note(f"{what} stays closed: port {port} is in use; set {name} to another")
        return False

    async def _start_servers(self, trust: Path) -> Surroundings:
        """PostgreSQL, NATS and the OTLP receiver, as far as none is given."""
        settings, home = self._settings, self._home
        parts: list[Part] = []
        postgres = nats = None
        if settings.database_url is None:
            postgres = EmbeddedPostgres(home=home.root, log_path=home.log("postgres"))
            parts.append(postgres)
        if settings.nats_url is None:
            nats = EmbeddedNats(
                home=home.root,
                root=secrets.decode_root(self._secret),
                mqtt=self._mqtt_listener(),
                mqtt_tls=encryption.mqtt_tls(settings, trust),
                sync_always=settings.mqtt_sync,
                log_path=home.log("nats"),
            )
            parts.append(nats)
        else:
            self._note("MQTT stays closed: NATS is one of your own, given with TWINMESH_NATS_URL")
        otlp_endpoint = settings.otlp_endpoint
        if not otlp_endpoint:
            receiver = ServiceProcess(
                name=_OTLP,
                module="twinmesh_cli.otlp_receiver",
                port=free_ports(1)[0],
                variables={
                    "TWINMESH_TRACES": str(home.traces),
                    "TWINMESH_METRICS": str(home.metrics),
                    "TWINMESH_LOG_LEVEL": settings.log_level,
                },
                log_path=home.log(_OTLP),
                connect=grpc.insecure_channel,
            )
            otlp_endpoint = f"http://127.0.0.1:{receiver.port}"
            parts.append(receiver)
        await self._supervisor.start(parts)
        return Surroundings(
            admin_url=postgres.admin_url if postgres else _reveal(settings.database_url),
            nats_url=nats.url if nats else _reveal(settings.nats_url),
            nats=nats,
            data_dir=postgres.data_dir if postgres else settings.database_data_dir,
            otlp_endpoint=otlp_endpoint,
            trust=trust,
            identity=ServiceIdentity(home.identities / LAUNCHER),
        )

    async def _migrate(self, facts: Surroundings) -> Migrated:
        try:
            migrated = await migrate(facts.admin_url, root=secrets.decode_root(self._secret))
        except (DatabaseAwayError, MigrationError) as error:
            raise PartFailedError("migrations", str(error)) from error
        except asyncpg.PostgresError as error:
            raise PartFailedError(
                "migrations",
                f"PostgreSQL refused: {error}",
                advice="TWINMESH_DATABASE_URL needs a role with CREATEROLE, BYPASSRLS and CREATE on it.",
            ) from error
        count = len(migrated.applied)
        self._reporter.step("migrations", f"{count} applied" if count else "nothing to do")
        return migrated

    async def _seed(self, facts: Surroundings, migrated: Migrated) -> Seeded:
        """Once for each database: what people delete later stays deleted."""
        marker = self._home.seeded
        if not migrated.applied and marker.exists() and marker.read_text() == migrated.born:
            is_deleted = await is_tenant_deleted(facts.admin_url, "demo")
            return Seeded(user_created=False, password=None, tenant_deleted=is_deleted)
        seeded = await seed(self._settings, admin_url=facts.admin_url, mesh_secret=self._secret)
        marker.write_text(migrated.born)
        if seeded.tenant_deleted:
            self._reporter.step("sample data", "none, tenant demo is deleted")
        else:
            self._reporter.step("sample data", "loaded" if seeded.user_created else "there already")
        return seeded

    async def _start_services(self, facts: Surroundings) -> dict[str, list[int]]:
        """The services; returns their ports by name."""
        ports = service_ports(self._settings)
        processes = service_processes(
            settings=self._settings, home=self._home, secret=self._secret, surroundings=facts, ports=ports
        )
        await self._supervisor.start(processes)
        return ports

    async def _start_simulator(self, facts: Surroundings) -> None:
        """Starts the simulated fleet; the mesh is as good without it."""
        settings = self._settings
        try:
            api_key = await issue_simulator_key(settings, admin_url=facts.admin_url, mesh_secret=self._secret)
        except PartFailedError as failure:
            self._note(f"no simulated fleet: {failure}")
            return
        simulator = Simulator(
            gateway=encryption.for_clients(settings),
            api_key=api_key,
            spool=self._home.root / Simulator.name,
            log_path=self._home.log(Simulator.name),
        )
        await self._supervisor.start([simulator])

    def _envoy(
        self,
        facts: Surroundings,
        ports: Mapping[str, Sequence[int]],
        door: DeviceDoor | None,
        edge_secret: Path | None,
    ) -> EmbeddedEnvoy:
        settings = self._settings
        admin_port, jwks_port = free_ports(2)

        def configure(descriptor: Path) -> Mapping[str, Any]:
            return render(
                GatewaySettings(
                    bind=settings.bind,
                    port=settings.gateway_port,
                    admin_port=admin_port,
                    jwks_port=jwks_port,
                    upstreams={
                        each: [Endpoint("127.0.0.1", port) for port in ports[each.value]] for each in Upstream
                    },
                    identity=GatewayIdentity(
                        folder=facts.trust, trust_domain=facts.identity.name.trust_domain
                    ),
                    descriptor_path=descriptor,
                    tls=edge_secret,
                    devices=door,
                    otlp=Endpoint.parse(facts.otlp_endpoint),
                    trace_sample_ratio=settings.trace_sample_ratio,
                    cors_origins=parse_origins(settings.cors_origins),
                    requests_per_second=settings.gateway_requests_per_second,
                    trusted_hops=settings.gateway_trusted_hops,
                )
            )

        return EmbeddedEnvoy(
            home=self._home.root,
            descriptor=_contract_descriptor(),
            render=configure,
            log_path=self._home.log("envoy"),
        )

    async def _until_answering(self) -> None:
        """Waits until the gateway itself calls the mesh ready, which asks everybody behind it."""
        answer = "no answer"
        known = encryption.own_gateway(self._settings)
        try:
            async with (
                asyncio.timeout(_ANSWER_SECONDS),
                httpx.AsyncClient(trust_env=False, timeout=5, verify=known) as client,
            ):
                while True:
                    try:
                        response = await client.get(f"{self._settings.gateway_url}/healthz/ready")
                    except httpx.TransportError as error:
                        answer = repr(error)
                    else:
                        if response.is_success:
                            return
                        answer = response.text
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise PartFailedError("envoy", f"the gateway does not call the mesh ready: {answer}") from None

    def _note(self, text: str) -> None:
        self._notices.append(text)
        self._reporter.notice(text)

    def _on_change(self, each: Supervised) -> None:
        self._write_state()
        self._reporter.part(each.part.name, each.state)

    def _write_state(self) -> None:
        LauncherState(
            launcher=self._launcher,
            gateway_url=self._settings.gateway_url,
            parts=tuple(self._record(each) for each in self._supervisor.supervised),
            ready=self._ready,
            notices=tuple(self._notices),
        ).write(self._home.state)

    def _record(self, each: Supervised) -> PartRecord:
        process = each.part.process
        identity = None
        if process is not None and process.pid is not None:
            identity = ProcessIdentity.of(process.pid, process.command)
        return PartRecord(
            name=each.part.name,
            state=each.state,
            port=self._port(each.part),
            since=each.since,
            restarts=each.restarts,
            log=str(self._home.log(each.part.name)),
            stop_signal=int(process.stop_signal) if process is not None else 0,
            identity=identity,
        )

    def _port(self, part: Part) -> int | None:
        if isinstance(part, EmbeddedEnvoy):
            return self._settings.gateway_port
        if isinstance(part, ServiceProcess | EmbeddedPostgres | EmbeddedNats) and part.running:
            return part.port
        return None


async def _try_nats(url: str) -> None:
    # Also its library writes failures to a log of its own; the exception says enough.
    async def quiet(_: Exception) -> None:
        return

    try:
        async with asyncio.timeout(_NATS_SECONDS):
            client = await nats.connect(
                url, max_reconnect_attempts=1, reconnect_time_wait=0.1, error_cb=quiet
            )
    except (OSError, TimeoutError, ValueError, nats.errors.Error) as error:
        where = url.rpartition("@")[2].removeprefix("nats://")
        raise PartFailedError(
            "nats", f"NATS at {where} cannot be used: {error}", advice="Check TWINMESH_NATS_URL."
        ) from error
    await client.close()


def _reveal(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret is not None else ""


def _contract_descriptor() -> Path:
    """The contract as the generator left it beside the generated packages."""
    if not CONTRACT.is_file():
        raise PartFailedError(
            "envoy", f"{CONTRACT} is missing", advice="Generate the code again: make generate"
        )
    return CONTRACT
