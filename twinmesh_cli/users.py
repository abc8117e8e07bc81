"""`twinmesh users`: who there is in the tenant, in which role, and their passwords."""

import getpass
import sys
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from twinmesh.auth.v1 import user_service_pb2, user_service_pb2_grpc
from twinmesh_cli.session import Session, fail, run
from twinmesh_cli.shown import table_console, visible

_PAGE = 1_000

users_app = typer.Typer(
    help="Who there is in the tenant, in which role, and their passwords.", invoke_without_command=True
)
Username = Annotated[str, typer.Argument(help="The user's name.")]
PasswordStdin = Annotated[
    bool, typer.Option(help="Read the password from standard input; without: a one-time password is made.")
]


@users_app.callback()
def users(
    context: typer.Context,
    role: Annotated[str, typer.Option(help="Only those with this role.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 1_000,
) -> None:
    """List users by name."""
    if context.invoked_subcommand is not None:
        return
    request = user_service_pb2.ListUsersRequest(role=role)

    async def listed(session: Session) -> tuple[list[user_service_pb2.User], bool]:
        return await session.listed(
            _stub(session).ListUsers, request, lambda page: page.users, limit=limit, page_size=_PAGE
        )

    found, is_all = run(listed)
    table = Table("user", "name", "role", "state")
    for user in found:
        table.add_row(
            *(Text(visible(cell)) for cell in (user.username, user.display_name, user.role, _state(user)))
        )
    table_console().print(table)
    if not is_all:
        print(f"and more; --limit shows more than {limit:,}")


@users_app.command(name="create")
def create(
    username: Username,
    role: Annotated[str, typer.Option(help="Id of a role; `twinmesh roles` lists them.")],
    display_name: Annotated[str, typer.Option(help="What people call them.")] = "",
    password_stdin: PasswordStdin = False,
) -> None:
    """Add a user; without a password, with a one-time password to hand to them."""
    request = user_service_pb2.CreateUserRequest(
        user=user_service_pb2.User(username=username, role=role, display_name=display_name),
        password=_line() if password_stdin else "",
    )

    async def created(session: Session) -> user_service_pb2.CreateUserResponse:
        answer: user_service_pb2.CreateUserResponse = await session.call(_stub(session).CreateUser, request)
        return answer

    answer = run(created)
    print(f"{username} is {role}")
    _tell(answer.one_time_password)


@users_app.command(name="update")
def update(
    username: Username,
    role: Annotated[str | None, typer.Option(help="Id of another role.")] = None,
    display_name: Annotated[str | None, typer.Option(help="What people call them.")] = None,
    disable: Annotated[bool | None, typer.Option("--disable/--enable", help="May not log in.")] = None,
) -> None:
    """Change a user; another role or --disable ends the user's sessions."""
    request = user_service_pb2.UpdateUserRequest(user=user_service_pb2.User(username=username))
    for name, value in (("role", role), ("display_name", display_name), ("disabled", disable)):
        if value is not None:
            setattr(request.user, name, value)
            request.update_mask.paths.append(name)
    if not request.update_mask.paths:
        fail("say what to change: --role, --display-name, --disable, --enable")

    async def updated(session: Session) -> user_service_pb2.User:
        answer: user_service_pb2.User = await session.call(_stub(session).UpdateUser, request)
        return answer

    user = run(updated)
    print(", ".join(filter(None, (f"{username} is {user.role}", _state(user)))))


@users_app.command(name="password")
def password(
    password_stdin: Annotated[
        bool,
        typer.Option(help="Read the present and the next password from standard input, a line each."),
    ] = False,
) -> None:
    """Change your own password; log in again afterwards."""
    if password_stdin:
        old, new = _line(), _line()
    else:
        old, new = getpass.getpass("present password: "), getpass.getpass("next password: ")
        if getpass.getpass("once more: ") != new:
            fail("the two are not the same; nothing was changed")
    request = user_service_pb2.ChangePasswordRequest(old_password=old, new_password=new)

    async def changed(session: Session) -> None:
        # The log-in's own, whichever API key other commands use.
        metadata = (("authorization", f"Bearer {await session.access_token()}"),)
        await _stub(session).ChangePassword(request, metadata=metadata, timeout=30)
        session.store.write(None)

    run(changed)
    print("changed; all of your sessions have ended: `twinmesh login`")


@users_app.command(name="reset-password")
def reset_password(username: Username, password_stdin: PasswordStdin = False) -> None:
    """Give another user another password, and end their sessions."""
    request = user_service_pb2.ResetPasswordRequest(
        username=username, password=_line() if password_stdin else ""
    )

    async def reset(session: Session) -> user_service_pb2.ResetPasswordResponse:
        answer: user_service_pb2.ResetPasswordResponse = await session.call(
            _stub(session).ResetPassword, request
        )
        return answer

    answer = run(reset)
    print(f"{username} has another password")
    _tell(answer.one_time_password)


@users_app.command(name="delete")
def delete(username: Username) -> None:
    """Remove a user and end their sessions; API keys that they made stay."""
    request = user_service_pb2.DeleteUserRequest(username=username)

    async def deleted(session: Session) -> None:
        await session.call(_stub(session).DeleteUser, request)

    run(deleted)
    print(f"{username} is deleted")


def _stub(session: Session) -> Any:
    return user_service_pb2_grpc.UserServiceStub(session.channel)


def _line() -> str:
    return sys.stdin.readline().rstrip("\n")


def _state(user: user_service_pb2.User) -> str:
    if user.disabled:
        return "disabled"
    if user.HasField("one_time_password_expire_time"):
        return f"one-time password until {user.one_time_password_expire_time.ToDatetime():%F %T} UTC"
    return ""


def _tell(one_time_password: str) -> None:
    if one_time_password:
        print(f"one-time password, shown this once and good for seven days: {one_time_password}")
