"""Runs a service's app until it is told to stop."""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TypeVar

import asyncpg
import nats.errors
import structlog
import uvloop
from pydantic import ValidationError

from meshkit.access import own_identity
from meshkit.config import FiledSettings, ServiceSettings, environment_name
from meshkit.errors import DomainError
from meshkit.metrics import metering
from meshkit.secret_places import SettingsUnreadable
from meshkit.telemetry import configure_logging, tracing

_log = structlog.get_logger()
BAD_SETTINGS = 2  # exit status
NOT_STARTED = 1  # exit status
# What a service meets that cannot reach what it needs, or is refused there.
_AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, nats.errors.Error, DomainError)
# By Python's own thresholds what is in flight for a moment counts as long-lived, and each full
# collection walks all that ten thousand streams hold: half of the time of a process that had them.
_GC_THRESHOLDS = (50_000, 20, 50)
_S = TypeVar("_S", bound=ServiceSettings)
_T = TypeVar("_T", bound=FiledSettings)


def read_settings(program: str, settings_type: type[_T]) -> _T:
    """Return the settings of the environment, files and Vault.

    Exits with status 2 and a line per setting when they are wrong or cannot be read.
    """
    try:
        return settings_type()
    except SettingsUnreadable as unreadable:
        sys.stderr.write(f"{program}: {unreadable}\n")
        sys.exit(BAD_SETTINGS)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            # What is wrong of several together names them itself.
            name = str(problem["loc"][0]) if problem["loc"] else ""
            field = settings_type.model_fields.get(name)
            told = environment_name(name, field) if field else name
            # The validator's own words, without pydantic's before them.
            why = problem["msg"].removeprefix("Value error, ")
            sys.stderr.write(": ".join(part for part in (program, told, why) if part) + "\n")
        sys.exit(BAD_SETTINGS)


def run(
    service: str, settings_type: type[_S], app: Callable[[_S], AbstractAsyncContextManager[object]]
) -> None:
    """Read the settings, keep the app open until SIGTERM or SIGINT, then close it in order.

    Exits with status 2 and a line per setting when the settings are wrong, or when the folder of
    its identity is not this service's; with status 1 and a line when what it needs is away or refuses it.
    """
    settings = read_settings(service, settings_type)
    # It may refuse settings by itself, as auth_svc does with a file of issuers: that is told first.
    opened = app(settings)
    try:
        # Before anything is opened, so that nothing else is told first; the app reads it for itself.
        own_identity(settings, service)
    except ValueError as error:
        sys.stderr.write(f"{service}: {error}\n")
        sys.exit(BAD_SETTINGS)
    configure_logging(service, settings.log_level)
    endpoint = settings.otlp_endpoint
    with (
        tracing(service, endpoint=endpoint, sample_ratio=settings.trace_sample_ratio),
        metering(service, endpoint=endpoint, interval_ms=settings.metric_export_interval),
    ):
        uvloop.run(_serve(opened))


async def _serve(app: AbstractAsyncContextManager[object]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    gc.set_threshold(*_GC_THRESHOLDS)
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(app)
        except _AWAY as error:
            _log.error("cannot start", error=f"{type(error).__name__}: {error}")
            sys.exit(NOT_STARTED)
        gc.freeze()  # Modules and what was wired together stay for good.
        await stop.wait()
        _log.info("stopping")
    _log.info("stopped")
