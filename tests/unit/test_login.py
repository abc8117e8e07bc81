"""Log-in and log-out keep and forget tokens."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner, Result

from twinmesh.auth.v1 import session_service_pb2 as pb
from twinmesh.auth.v1 import session_service_pb2_grpc
from twinmesh_cli.main import app


class Sessions(session_service_pb2_grpc.SessionServiceServicer):
    """An auth_svc with one password; remembers who logged out."""

    def __init__(self) -> None:
        self.logged_out: list[str] = []
        self.ended = False

    def Login(self, request: pb.LoginRequest, context: grpc.ServicerContext) -> pb.LoginResponse:
        if request.password != "right":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong")
        answer = pb.LoginResponse(access_token="access", refresh_token="refresh")
        answer.expires_in.FromSeconds(900)
        return answer

    def Logout(self, request: pb.LogoutRequest, context: grpc.ServicerContext) -> pb.LogoutResponse:
        if self.ended:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "ended")
        self.logged_out.append(str(dict(context.invocation_metadata())["authorization"]))
        return pb.LogoutResponse()


@pytest.fixture
def sessions() -> Sessions:
    return Sessions()


@pytest.fixture
def environment(sessions: Sessions, tmp_path: Path) -> Iterator[dict[str, str]]:
    server = grpc.server(ThreadPoolExecutor(1))
    session_service_pb2_grpc.add_SessionServiceServicer_to_server(sessions, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield {
        "TWINMESH_GATEWAY": f"127.0.0.1:{port}",
        "TWINMESH_CREDENTIALS": str(tmp_path / "kept" / "credentials.json"),
    }
    server.stop(None).wait()


def run(environment: dict[str, str], *arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin, env=environment)


def kept(environment: dict[str, str]) -> dict[str, dict[str, str]]:
    entries: dict[str, dict[str, str]] = json.loads(Path(environment["TWINMESH_CREDENTIALS"]).read_text())
    return entries


def log_in(environment: dict[str, str]) -> None:
    done = run(environment, "login", "--password-stdin", stdin="right\n")
    assert (done.exit_code, done.output) == (0, "logged in as admin of tenant demo\n")


def test_tokens_are_kept_for_their_owner_only(environment: dict[str, str]) -> None:
    log_in(environment)
    assert kept(environment)[environment["TWINMESH_GATEWAY"]]["access_token"] == "access"
    assert Path(environment["TWINMESH_CREDENTIALS"]).stat().st_mode & 0o077 == 0


def test_a_wrong_password_keeps_nothing(environment: dict[str, str]) -> None:
    done = run(environment, "login", "--password-stdin", stdin="wrong\n")
    assert (done.exit_code, done.stderr) == (1, "UNAUTHENTICATED: wrong\n")
    assert not Path(environment["TWINMESH_CREDENTIALS"]).exists()


def test_log_out_ends_the_log_in_whichever_key_is_set(
    environment: dict[str, str], sessions: Sessions
) -> None:
    log_in(environment)
    done = run({**environment, "TWINMESH_API_KEY": "key"}, "logout")
    assert (done.exit_code, done.output) == (0, "logged out\n")
    assert sessions.logged_out == ["Bearer access"]
    assert kept(environment) == {}
    assert run(environment, "logout").output == "nobody was logged in\n"


def test_tokens_of_a_session_that_has_ended_are_forgotten(
    environment: dict[str, str], sessions: Sessions
) -> None:
    log_in(environment)
    sessions.ended = True
    assert run(environment, "logout").output == "logged out\n"
    assert kept(environment) == {}
