"""When a dependency is away: at once if it refuses, at its second late answer in a row otherwise."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from grpc_health.v1 import health, health_pb2

from meshkit import server

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (["good", "late", "good", "late", "good"], [True] * 5),
        (["good", "late", "late", "late", "good"], [True, True, False, False, True]),
        (["good", "refused", "late", "good"], [True, False, False, True]),
        (["good", "late", "refused", "good", "late"], [True, True, False, True, True]),
        # Nothing has answered yet.
        (["late", "good"], [False, True]),
    ],
)
async def test_one_late_answer_is_no_outage(
    answers: Sequence[str], told: Sequence[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_CHECK_EVERY_S", 0.01)
    coming = iter(answers)

    async def check() -> None:
        match next(coming):
            case "late":
                await asyncio.Event().wait()
            case "refused":
                raise ConnectionError("away")

    servicer: Any = health.aio.HealthServicer()
    monitor = server._HealthMonitor(servicer=servicer, services=[], checks={"database": check}, hints={})
    found = []
    for _ in answers:
        await monitor.check()
        found.append([servicer._server_status[name] for name in ("", "database")])
    assert found == [[_SERVING if each else _NOT_SERVING] * 2 for each in told]
