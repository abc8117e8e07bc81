"""`twinmesh storage`: what is stored, how long it is kept, and what another policy would delete."""

import re
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from rich.table import Table
from rich.text import Text

from meshkit.clock import to_datetime
from twinmesh.ingest.v1 import storage_policy_service_pb2, storage_policy_service_pb2_grpc
from twinmesh.twin.v1 import storage_service_pb2, storage_service_pb2_grpc
from twinmesh_cli.session import Session, fail, run
from twinmesh_cli.shown import table_console, visible

_TIER = "STORAGE_TIER_"
_DAY_S = 86_400
_UNITS = {"d": 1, "w": 7, "y": 365}
# What each is, and what it comes to where nobody says anything.
_AGES = {
    "archive_after": ("archive samples after", "never, there is no archive"),
    "delete_after": ("delete samples and events after", "never"),
    "minute_rollups_kept": ("keep rollups of a minute for", "ever"),
    "hour_rollups_kept": ("keep rollups of an hour for", "ever"),
    "day_rollups_kept": ("keep rollups of a day for", "ever"),
}
_DEFAULT = "default"

storage_app = typer.Typer(
    help="What is stored, how long it is kept, and what another policy would delete.",
    invoke_without_command=True,
)


def _age(text: str) -> Duration | None:
    if text == _DEFAULT:
        return None
    written = re.fullmatch(r"(\d{1,5})([dwy])", text)
    if written is None:
        raise typer.BadParameter(f"{text!r} is no age: 30d, 12w, 2y, or {_DEFAULT}")
    return Duration(seconds=int(written[1]) * _UNITS[written[2]] * _DAY_S)


def _option(what: str) -> Any:
    return typer.Option(metavar="AGE", help=f"{what}: 30d, 12w, 2y; {_DEFAULT}: as the installation is set.")


ArchiveAfter = Annotated[str | None, _option("Archive samples after")]
DeleteAfter = Annotated[str | None, _option("Delete samples and events after")]
MinuteRollups = Annotated[str | None, _option("Keep rollups of a minute for")]
HourRollups = Annotated[str | None, _option("Keep rollups of an hour for")]
DayRollups = Annotated[str | None, _option("Keep rollups of a day for")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@storage_app.callback()
def storage(
    context: typer.Context,
    top: Annotated[int, typer.Option(min=1, max=1_000, help="How many devices to name.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show what is stored by tier, device type and device, as it was measured last."""
    if context.invoked_subcommand is not None:
        return
    request = storage_service_pb2.GetStorageReportRequest(top_devices=top)

    async def asked(session: Session) -> storage_service_pb2.StorageReport:
        stub: Any = storage_service_pb2_grpc.StorageServiceStub(session.channel)
        answer: storage_service_pb2.StorageReport = await session.call(stub.GetStorageReport, request)
        return answer

    report = run(asked)
    if as_json:
        print(json_format.MessageToJson(report))
    else:
        _show_report(report)


@storage_app.command()
def policy(
    archive_after: ArchiveAfter = None,
    delete_after: DeleteAfter = None,
    minute_rollups: MinuteRollups = None,
    hour_rollups: HourRollups = None,
    day_rollups: DayRollups = None,
    as_json: AsJson = False,
) -> None:
    """Show how long what is kept, or change it; what is deleted by it does not come back."""
    request = storage_policy_service_pb2.UpdateStoragePolicyRequest()
    _fill(request, archive_after, delete_after, minute_rollups, hour_rollups, day_rollups)

    async def asked(session: Session) -> storage_policy_service_pb2.StoragePolicy:
        stub: Any = storage_policy_service_pb2_grpc.StoragePolicyServiceStub(session.channel)
        answer: storage_policy_service_pb2.StoragePolicy
        if request.update_mask.paths:
            answer = await session.call(stub.UpdateStoragePolicy, request)
        else:
            answer = await session.call(
                stub.GetStoragePolicy, storage_policy_service_pb2.GetStoragePolicyRequest()
            )
        return answer

    found = run(asked)
    if as_json:
        print(json_format.MessageToJson(found))
    else:
        _show_policy(found)


@storage_app.command()
def preview(
    archive_after: ArchiveAfter = None,
    delete_after: DeleteAfter = None,
    minute_rollups: MinuteRollups = None,
    hour_rollups: HourRollups = None,
    day_rollups: DayRollups = None,
    as_json: AsJson = False,
) -> None:
    """Show what a policy would have deleted and archived at once, before it is set."""
    request = storage_service_pb2.PreviewStoragePolicyRequest()
    _fill(request, archive_after, delete_after, minute_rollups, hour_rollups, day_rollups)
    if not request.update_mask.paths:
        fail("say what would change, as for twinmesh storage policy")

    async def asked(session: Session) -> storage_service_pb2.StoragePreview:
        stub: Any = storage_service_pb2_grpc.StorageServiceStub(session.channel)
        answer: storage_service_pb2.StoragePreview = await session.call(stub.PreviewStoragePolicy, request)
        return answer

    found = run(asked)
    if as_json:
        print(json_format.MessageToJson(found))
    else:
        _show_preview(found)


def _fill(
    request: storage_policy_service_pb2.UpdateStoragePolicyRequest
    | storage_service_pb2.PreviewStoragePolicyRequest,
    *ages: str | None,
) -> None:
    request.storage_policy.SetInParent()
    for name, text in zip(_AGES, ages, strict=True):
        if text is None:
            continue
        request.update_mask.paths.append(name)
        if (age := _age(text)) is not None:
            getattr(request.storage_policy, name).CopyFrom(age)


def _show_report(report: storage_service_pb2.StorageReport) -> None:
    if report.storage_full:
        print("there is no room: new data are refused (STORAGE_FULL)")
    if not report.HasField("as_of"):
        print("nothing was measured yet")
        return
    tiers = Table("tier", "table", title="Stored", title_justify="left")
    for name in ("rows", "samples", "bytes", "bytes/sample"):
        tiers.add_column(name, justify="right")
    for each in report.usage:
        about = "~" if each.estimated else ""
        ratio = f"{each.bytes / each.samples:.2f}" if each.samples else ""
        amounts = (each.rows, each.samples, each.bytes)
        tiers.add_row(
            _tier(each.tier),
            each.table.removeprefix("telemetry."),
            *(f"{about}{amount:,}" for amount in amounts),
            ratio,
        )
    tiers.add_row("all", "", "", "", f"{report.bytes:,}", "")
    types = Table("device type", title="By device type", title_justify="left")
    for name in ("devices", "samples", "bytes"):
        types.add_column(name, justify="right")
    for kind in report.device_types:
        name = visible(kind.device_type_id) or "(others)"
        types.add_row(Text(name), f"{kind.devices:,}", f"{kind.samples:,}", f"{kind.bytes:,}")
    devices = Table("device", "device type", title="Top devices", title_justify="left")
    for name in ("samples", "bytes"):
        devices.add_column(name, justify="right")
    for device in report.top_devices:
        devices.add_row(
            Text(visible(device.device_id)),
            Text(visible(device.device_type_id)),
            f"{device.samples:,}",
            f"{device.bytes:,}",
        )
    for table in (tiers, types, devices):
        if table.row_count:
            table_console().print(table)
    print(f"measured at {to_datetime(report.as_of.ToMicroseconds()):%F %T} UTC or later")


def _show_policy(policy: storage_policy_service_pb2.StoragePolicy) -> None:
    effective = policy.effective
    for name, (what, absent) in _AGES.items():
        said = absent
        if effective.HasField(name):  # type: ignore[arg-type] # One of its fields.
            days = getattr(effective, name).ToTimedelta().days
            said = "1 day" if days == 1 else f"{days:,} days"
        # Of an archive that there is not, the policy may say something all the same.
        is_own = policy.HasField(name)  # type: ignore[arg-type] # One of its fields.
        print(f"{what}: {said}" + ("" if is_own else ", as the installation is set"))


def _show_preview(preview: storage_service_pb2.StoragePreview) -> None:
    _show_policy(preview.storage_policy)
    if not preview.effects:
        print("nothing that is there now would be deleted or archived")
        return
    table = Table("tier", "what", title="At once", title_justify="left")
    for name in ("rows", "samples", "bytes"):
        table.add_column(name, justify="right")
    for each in preview.effects:
        for what in ("deleted", "archived"):
            amounts = [getattr(each, f"{what}_{name}") for name in ("rows", "samples", "bytes")]
            if amounts[0]:
                table.add_row(_tier(each.tier), what, *(f"{amount:,}" for amount in amounts))
    table_console().print(table)
    print(f"saves {preview.saved_bytes:,} bytes")


def _tier(tier: storage_service_pb2.StorageTier.ValueType) -> str:
    return storage_service_pb2.StorageTier.Name(tier).removeprefix(_TIER).lower().replace("_", " ")
