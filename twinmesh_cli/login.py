"""`twinmesh login` and `twinmesh logout`."""

import getpass
import sys
from typing import Annotated, Any

import grpc
import typer

from twinmesh.auth.v1 import session_service_pb2, session_service_pb2_grpc
from twinmesh_cli.session import Session, credentials_of, run


def login(
    tenant: Annotated[str, typer.Option(help="The tenant's id.")] = "demo",
    username: Annotated[str, typer.Option(help="The user's name.")] = "admin",
    password_stdin: Annotated[bool, typer.Option(help="Read the password from standard input.")] = False,
) -> None:
    """Log in and keep the tokens for the other client commands."""
    password = sys.stdin.readline().rstrip("\n") if password_stdin else getpass.getpass()

    async def work(session: Session) -> str:
        stub: Any = session_service_pb2_grpc.SessionServiceStub(session.channel)
        request = session_service_pb2.LoginRequest(tenant=tenant, username=username, password=password)
        answer = await stub.Login(request, timeout=30)
        session.store.write(credentials_of(answer))
        told = f"logged in as {username} of tenant {tenant}"
        if answer.password_change_required:
            told += "; choose a password of your own: `twinmesh users password`"
        return told

    print(run(work))


def logout() -> None:
    """End the session and forget its tokens."""

    async def work(session: Session) -> str:
        if session.store.read() is None:
            return "nobody was logged in"
        stub: Any = session_service_pb2_grpc.SessionServiceStub(session.channel)
        try:
            # The log-in's own token, whichever API key other commands use.
            metadata = (("authorization", f"Bearer {await session.access_token()}"),)
            await stub.Logout(session_service_pb2.LogoutRequest(), metadata=metadata, timeout=30)
        except grpc.aio.AioRpcError as error:
            # A session that has ended by itself leaves tokens to forget all the same.
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise
        session.store.write(None)
        return "logged out"

    print(run(work))
