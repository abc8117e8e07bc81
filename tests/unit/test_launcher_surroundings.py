"""What surrounds the command line: proxies, and readers of its output that went away."""

import os
import socket
from pathlib import Path

import grpc
import pytest
from rich.console import Console
from typer.testing import CliRunner

from twinmesh_cli.main import app
from twinmesh_cli.progress import LineReporter, LiveReporter
from twinmesh_cli.state import PartState

_FULL = Path("/dev/full")


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment whose proxy answers nobody."""
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        # Set first, so that what the command sets is taken back after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")


def _reached_by_grpc() -> bool:
    """Whether a call to this machine arrives there."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.getsockname()[1]}") as channel,
    ):
        server.settimeout(10)
        call = channel.unary_unary("/nobody/Answers", bytes, bytes).future(b"", timeout=20)
        try:
            server.accept()[0].close()
        except TimeoutError:
            return False
        finally:
            call.cancel()
        return True


@pytest.mark.parametrize("excepted", [{}, {"NO_PROXY": "db.example"}, {"no_grpc_proxy": "db.example"}])
def test_a_proxy_is_for_other_machines(
    proxied: None, excepted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in excepted.items():
        monkeypatch.setenv(name, value)

    assert CliRunner().invoke(app, ["config"]).exit_code == 0

    assert _reached_by_grpc()
    for name, value in excepted.items():
        assert value in (os.environ[name], *os.environ[name.lower()].split(","))


@pytest.mark.skipif(not _FULL.exists(), reason="needs /dev/full")
def test_output_that_nobody_takes_ends_nothing() -> None:
    with _FULL.open("w", buffering=1) as full:
        lines = LineReporter(full)
        lines.part("nats", PartState.READY)
        lines.step("migrations", "nothing to do")
        LiveReporter(Console(file=full)).notice("nats is back")
        with pytest.raises(OSError, match="No space left"):
            print("lost", file=full, flush=True)
        # What was not taken stays buffered, and would be written once more on closing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
