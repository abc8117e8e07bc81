"""`twinmesh limits`: what is limited, what is used of it, and who was sent back."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from twinmesh.ingest.v1 import (
    ingest_policy_service_pb2,
    ingest_policy_service_pb2_grpc,
    limit_service_pb2,
    limit_service_pb2_grpc,
)
from twinmesh_cli.session import Session, fail, run
from twinmesh_cli.shown import table_console, visible

_PAGE = 1_000
_KINDS = {
    "tenant": ingest_policy_service_pb2.SUBJECT_KIND_TENANT,
    "device": ingest_policy_service_pb2.SUBJECT_KIND_DEVICE,
    "principal": ingest_policy_service_pb2.SUBJECT_KIND_PRINCIPAL,
    "connection": ingest_policy_service_pb2.SUBJECT_KIND_CONNECTION,
}
_CONNECTIONS = "tenant_connections"
_KIND_NAMES = {kind: name for name, kind in _KINDS.items()}
_MEASURES = ("samples_per_second", "bytes_per_second", "streams", "inflight_bytes", "connections")

limits_app = typer.Typer(
    help="Show what is limited, what is used of it, and who was sent back.", invoke_without_command=True
)
Amount = Annotated[int | None, typer.Option(min=0, help="0: no limit. Without it the limit stays.")]


@limits_app.callback()
def limits(
    context: typer.Context,
    device: Annotated[str, typer.Option(help="Only what limits of this device sent back.")] = "",
    principal: Annotated[
        str, typer.Option(help="Only what this one sent, as api_key:<id> or user:<name>.")
    ] = "",
    writer: Annotated[str, typer.Option(help="Only what this writer sent.")] = "",
    hours: Annotated[float, typer.Option(min=0, max=168, help="Of the last so many hours.")] = 1.0,
    limit: Annotated[int, typer.Option(min=1, help="At most this many rows of what was sent back.")] = 100,
) -> None:
    """Show what is limited, what is used of it, and who was sent back."""
    if context.invoked_subcommand is not None:
        return
    request = limit_service_pb2.ListLimitHitsRequest(device_id=device, principal=principal, writer_id=writer)
    request.start_time.FromDatetime(datetime.now(UTC) - timedelta(hours=hours))
    policy, usage, hits = run(lambda session: _look(session, request, limit))
    _show_limits(policy, usage)
    _show_hits(hits, hours)


@limits_app.command(name="set")
def set_limit(
    kind: Annotated[str, typer.Argument(help=f"What to limit: {', '.join(_KINDS)}.")],
    subject: Annotated[
        str, typer.Argument(help="A device, or a principal as api_key:<id> or user:<name>; without: each.")
    ] = "",
    samples: Amount = None,
    bytes_: Annotated[int | None, typer.Option("--bytes", min=0, help="Bytes per second, likewise.")] = None,
    streams: Annotated[int | None, typer.Option(min=0, help="Streams open at once, likewise.")] = None,
    inflight: Annotated[int | None, typer.Option(min=0, help="Bytes in flight, likewise.")] = None,
    connections: Annotated[
        int | None, typer.Option(min=0, help="Connections of the tenant to all services, likewise.")
    ] = None,
) -> None:
    """Change the limits of a subject; with every limit at 0 it has none of its own."""
    if kind not in _KINDS:
        fail(f"{kind!r} cannot be limited; what can: {', '.join(_KINDS)}")
    amounts = {
        name: amount
        for name, amount in zip(_MEASURES, (samples, bytes_, streams, inflight, connections), strict=True)
        if amount is not None
    }
    if not amounts:
        fail("say which limit: --samples, --bytes, --streams, --inflight, --connections")
    policy = run(lambda session: _change(session, kind, subject, amounts))
    _show_limits(policy, {})


async def _look(
    session: Session, request: limit_service_pb2.ListLimitHitsRequest, limit: int
) -> tuple[
    ingest_policy_service_pb2.IngestPolicy, dict[tuple[str, str], int], list[limit_service_pb2.LimitHit]
]:
    policies: Any = ingest_policy_service_pb2_grpc.IngestPolicyServiceStub(session.channel)
    stub: Any = limit_service_pb2_grpc.LimitServiceStub(session.channel)
    policy = await session.call(policies.GetIngestPolicy, ingest_policy_service_pb2.GetIngestPolicyRequest())
    usage = await session.call(stub.GetLimitUsage, limit_service_pb2.GetLimitUsageRequest())
    hits, _ = await session.listed(
        stub.ListLimitHits, request, lambda page: page.limit_hits, limit=limit, page_size=_PAGE
    )
    return policy, {(each.limit_name, each.subject): each.used for each in usage.usage}, hits


async def _change(
    session: Session, kind: str, subject: str, amounts: dict[str, int]
) -> ingest_policy_service_pb2.IngestPolicy:
    stub: Any = ingest_policy_service_pb2_grpc.IngestPolicyServiceStub(session.channel)
    policy = await session.call(stub.GetIngestPolicy, ingest_policy_service_pb2.GetIngestPolicyRequest())
    request = ingest_policy_service_pb2.UpdateIngestPolicyRequest()
    request.update_mask.paths.append("limits")
    request.ingest_policy.etag = policy.etag
    changed = ingest_policy_service_pb2.Limit(subject_kind=_KINDS[kind], subject=subject)
    for each in policy.limits:
        if (each.subject_kind, each.subject) == (changed.subject_kind, subject):
            changed.CopyFrom(each)
        else:
            request.ingest_policy.limits.append(each)
    for name, amount in amounts.items():
        setattr(changed, name, amount)
    if any(getattr(changed, name) for name in _MEASURES):
        request.ingest_policy.limits.append(changed)
    return await session.call(stub.UpdateIngestPolicy, request)


def _show_limits(policy: ingest_policy_service_pb2.IngestPolicy, usage: dict[tuple[str, str], int]) -> None:
    if not policy.limits:
        print("nothing is limited but connections, by the installation")
    table = Table("limit", "of", "allowed", "used now", title="Limits", title_justify="left")
    for each in policy.limits:
        kind = _KIND_NAMES[each.subject_kind]
        for measure in _MEASURES:
            allowed = getattr(each, measure)
            if not allowed:
                continue
            name = f"{kind}_{measure}"
            found = {subject: used for (of, subject), used in usage.items() if of == name}
            if each.subject or kind == "tenant":
                used = f"{found.get(each.subject, 0):,}"
            else:
                named = {other.subject for other in policy.limits if other.subject_kind == each.subject_kind}
                most = max(
                    (used, subject)
                    for subject, used in [*found.items(), ("", 0)]
                    if subject not in named - {""}
                )
                used = f"{most[0]:,} {visible(most[1])}".strip() if most[1] else ""
            table.add_row(name, Text(visible(each.subject) or _of_each(kind)), f"{allowed:,}", Text(used))
    used = f"{usage.get((_CONNECTIONS, ''), 0):,}"
    table.add_row(_CONNECTIONS, "each tenant of the installation", f"{policy.max_connections:,}", used)
    table_console().print(table)


def _of_each(kind: str) -> str:
    return "the tenant" if kind == "tenant" else f"each {kind}"


def _show_hits(hits: list[limit_service_pb2.LimitHit], hours: float) -> None:
    if not hits:
        print(f"nothing was sent back in the last {hours:g} h")
        return
    print("Sent back")
    for hit in hits:
        of = f" of {visible(hit.subject)}" if hit.subject else ""
        print(
            f"{hit.first_time.ToDatetime():%F %T} to {hit.last_time.ToDatetime():%T} UTC  "
            f"{hit.limit_name} {hit.limit:,}{of}"
        )
        sender = " ".join(filter(None, (hit.principal or "mqtt", hit.writer_id)))
        if hit.first_sequence:
            sender += f", batches {hit.first_sequence} to {hit.last_sequence}"
        amounts = f"{hit.batches:,} times, {hit.samples:,} samples, {hit.bytes:,} bytes"
        print(f"  {visible(sender)}: {amounts}")
