"""What is logged, and what is not."""

import contextvars
import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from meshkit import telemetry
from meshkit.telemetry import configure_logging


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    configured = structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**configured)
    structlog.contextvars.clear_contextvars()


@pytest.mark.usefixtures("restored_logging")
def test_a_failure_is_logged_without_the_values_it_held(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("test_svc", "INFO")

    def fails(password: str) -> None:
        raise RuntimeError("broken")

    try:
        fails("open sesame")
    except RuntimeError as error:
        structlog.get_logger().error("rpc failed", exc_info=error)
    line = capsys.readouterr().err
    told = json.loads(line)
    assert (told["message"], told["service"], told["level"]) == ("rpc failed", "test_svc", "error")
    assert told["exception"][0]["exc_value"] == "broken"
    assert "sesame" not in line


@pytest.mark.usefixtures("restored_logging")
def test_libraries_log_in_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("test_svc", "INFO")
    logging.getLogger("some.library").warning("careful: %s", "hot")
    assert json.loads(capsys.readouterr().err)["message"] == "careful: hot"


RECORDED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_RECORDED = RECORDED[:-1] + "0"


@pytest.mark.parametrize(
    ("method", "metadata", "expected"),
    [
        ("/twinmesh.twin.v1.TwinService/GetTwin", (("traceparent", RECORDED),), True),
        ("/twinmesh.twin.v1.TwinService/GetTwin", (("traceparent", NOT_RECORDED),), False),
        ("/twinmesh.twin.v1.TwinService/GetTwin", (), True),
        ("/twinmesh.twin.v1.TwinService/GetTwin", (("traceparent", "nonsense"),), True),
        ("/grpc.health.v1.Health/Check", (("traceparent", RECORDED),), False),
    ],
)
def test_calls_that_nobody_records_get_no_span(method: str, metadata: Any, expected: bool) -> None:
    details = SimpleNamespace(method=method, invocation_metadata=metadata)
    assert telemetry.deserves_span(details) is expected


def test_a_call_stands_in_its_callers_trace_recorded_or_not() -> None:
    def joined(traceparent: str) -> str:
        telemetry.join_trace((("traceparent", traceparent),))
        return telemetry.current_trace_id()

    assert contextvars.copy_context().run(joined, NOT_RECORDED) == NOT_RECORDED[3:35]
    assert contextvars.copy_context().run(joined, "nonsense") == ""
