"""Ingest policies: what each tenant allows of its telemetry."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum

from meshkit.clock import MICROS_PER_SECOND
from telemetry_store.tenant_policies import PolicyRow, PolicyTable


class SubjectKind(IntEnum):
    """What is limited; the numbers are those of the contract."""

    TENANT = 1
    DEVICE = 2
    PRINCIPAL = 3
    CONNECTION = 4


@dataclass(frozen=True, slots=True)
class SubjectLimits:
    """Limits of one subject; 0: none.

    Attributes:
        kind: what it is.
        subject: its id; "": each one that has no limits of its own.
        samples_per_second: of all processes together.
        bytes_per_second: likewise.
        streams: open at once.
        inflight_bytes: that wait to be durable at once.
        connections: open at once, of all services.
    """

    kind: SubjectKind
    subject: str = ""
    samples_per_second: int = 0
    bytes_per_second: int = 0
    streams: int = 0
    inflight_bytes: int = 0
    connections: int = 0


@dataclass(frozen=True, slots=True)
class IngestPolicyRow(PolicyRow):
    """What a tenant allows.

    Attributes:
        late_us: how old live telemetry may be, microseconds.
        future_us: how far ahead it may be, microseconds.
        raw_enabled: whether messages are kept as they came.
        raw_retention: for how long.
        dead_letter_retention: how long dead letters are kept.
        limits: each subject once.
    """

    late_us: int | None = None
    future_us: int | None = None
    raw_enabled: bool | None = None
    raw_retention: timedelta | None = None
    dead_letter_retention: timedelta | None = None
    limits: Sequence[SubjectLimits] = field(default=())


def _to_json(limits: SubjectLimits) -> dict[str, object]:
    amounts = {
        name: getattr(limits, name)
        for name in ("samples_per_second", "bytes_per_second", "streams", "inflight_bytes", "connections")
    }
    return {
        "subject_kind": limits.kind.value,
        "subject": limits.subject,
        **{name: amount for name, amount in amounts.items() if amount},
    }


def _from_json(written: dict[str, object]) -> SubjectLimits:
    return SubjectLimits(SubjectKind(written.pop("subject_kind")), **written)  # type: ignore[arg-type] # As written by _to_json.


def _micros(interval: timedelta | None) -> int | None:
    return None if interval is None else interval // timedelta(microseconds=1)


def _interval(micros: int | None) -> timedelta | None:
    return None if micros is None else timedelta(seconds=micros / MICROS_PER_SECOND)


INGEST_POLICIES = PolicyTable(
    "ingest_policy",
    IngestPolicyRow,
    columns=(
        "late_window", "future_window", "raw_enabled", "raw_retention", "dead_letter_retention", "limits",
    ),
    fields=lambda record: {
        "late_us": _micros(record["late_window"]),
        "future_us": _micros(record["future_window"]),
        "raw_enabled": record["raw_enabled"],
        "raw_retention": record["raw_retention"],
        "dead_letter_retention": record["dead_letter_retention"],
        "limits": tuple(_from_json(limits) for limits in json.loads(record["limits"])),
    },
    values=lambda row: [
        _interval(row.late_us),
        _interval(row.future_us),
        row.raw_enabled,
        row.raw_retention,
        row.dead_letter_retention,
        json.dumps([_to_json(limits) for limits in row.limits]),
    ],
)  # fmt: skip
