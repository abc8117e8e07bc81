"""What is logged, and what is not."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from meshkit.telemetry import configure_logging


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
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
