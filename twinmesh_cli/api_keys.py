"""`twinmesh api-keys`: credentials of machines."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from twinmesh.auth.v1 import api_key_service_pb2 as contract
from twinmesh.auth.v1 import api_key_service_pb2_grpc as contract_grpc
from twinmesh_cli.options import time_option
from twinmesh_cli.session import Session, run
from twinmesh_cli.shown import table_console, visible

_PAGE = 1_000

api_keys_app = typer.Typer(help="API keys, the credentials of machines.", invoke_without_command=True)
KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's id.")]


@api_keys_app.callback()
def api_keys(context: typer.Context) -> None:
    """List all API keys by id."""
    if context.invoked_subcommand is not None:
        return

    async def listed(session: Session) -> tuple[list[contract.ApiKey], bool]:
        return await session.listed(
            _stub(session).ListApiKeys,
            contract.ListApiKeysRequest(),
            lambda page: page.api_keys,
            limit=_PAGE,
            page_size=_PAGE,
        )

    found, is_all = run(listed)
    table_console().print(key_table(found))
    if not is_all:
        print(f"and more than these {_PAGE:,}")


def key_table(keys: Sequence[contract.ApiKey]) -> Table:
    """Return a table of keys; in a narrow terminal ids stay whole, since other commands are given them."""
    table = Table(Column("id", no_wrap=True, min_width=max((len(key.id) for key in keys), default=0)))
    for name in (
        "name",
        "creator",
        "expires",
        "last used",
        "former secrets until",
        "networks",
        "bound to",
        "permissions",
    ):
        table.add_column(name, overflow="fold")
    for key in keys:
        expires = _time(key.expire_time) if key.HasField("expire_time") else ""
        former = _time(key.former_secrets_expire_time) if key.HasField("former_secrets_expire_time") else ""
        used = _time(key.last_used_time) if key.HasField("last_used_time") else ""
        cells = (
            key.id,
            key.display_name,
            key.creator,
            expires,
            used,
            former,
            " ".join(key.allowed_addresses),
            " ".join([*key.device_ids, *(f"{gateway_id}/*" for gateway_id in key.gateway_ids)]),
            " ".join(key.permissions),
        )
        table.add_row(*(Text(visible(cell)) for cell in cells))
    return table


@api_keys_app.command()
def create(
    display_name: Annotated[str, typer.Argument(help="What people call it.")],
    permission: Annotated[
        list[str] | None,
        typer.Option(help="Permission that it carries, repeatable; without: role api_client's."),
    ] = None,
    expire: Annotated[
        datetime | None, time_option("When it ends, such as 2027-01-01T00:00:00Z; without: never.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CIDR", help="Network that it may be used from, repeatable; without: from anywhere."
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID", help="Device to bind it to, repeatable; without one or a gateway: it is for all."
        ),
    ] = None,
    gateway: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Gateway to bind it to, with its children, repeatable."),
    ] = None,
) -> None:
    """Make a key and print its secret, this once; it can only carry what you hold."""
    request = contract.CreateApiKeyRequest(
        display_name=display_name,
        permissions=permission or [],
        allowed_addresses=allow or [],
        device_ids=device or [],
        gateway_ids=gateway or [],
    )
    if expire is not None:
        request.expire_time.FromDatetime(expire)

    async def created(session: Session) -> contract.CreateApiKeyResponse:
        answer: contract.CreateApiKeyResponse = await session.call(_stub(session).CreateApiKey, request)
        return answer

    _tell(run(created))


@api_keys_app.command()
def rotate(
    key_id: KeyId,
    overlap_hours: Annotated[
        float,
        typer.Option(min=0, max=168, help="Hours that the secrets of before stay good; 0: they end at once."),
    ],
) -> None:
    """Give a key another secret and print it, this once."""
    request = contract.RotateApiKeyRequest(id=key_id)
    request.overlap.FromMilliseconds(round(overlap_hours * 3_600_000))

    async def rotated(session: Session) -> contract.RotateApiKeyResponse:
        answer: contract.RotateApiKeyResponse = await session.call(_stub(session).RotateApiKey, request)
        return answer

    _tell(run(rotated))


@api_keys_app.command()
def delete(key_id: KeyId) -> None:
    """Revoke a key for good, with all its secrets."""
    request = contract.DeleteApiKeyRequest(id=key_id)

    async def deleted(session: Session) -> None:
        await session.call(_stub(session).DeleteApiKey, request)

    run(deleted)
    print(f"{key_id} is deleted")


def _stub(session: Session) -> Any:
    return contract_grpc.ApiKeyServiceStub(session.channel)


def _time(moment: Any) -> str:
    shown: str = moment.ToDatetime(UTC).isoformat(timespec="seconds")
    return shown


def _tell(answer: contract.CreateApiKeyResponse | contract.RotateApiKeyResponse) -> None:
    print(f"secret, shown this once: {answer.secret}")
    print(f"or, to sign requests with: {answer.signing_secret}")
