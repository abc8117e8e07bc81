"""Ingest policies, and what limits do, between the contract's messages and plain data."""

from dataclasses import replace

from google.protobuf.duration_pb2 import Duration

from ingest_svc.window import LiveWindow
from meshkit.clock import MICROS_PER_SECOND
from meshkit.errors import invalid_field
from telemetry_store.ingest_policies import IngestPolicyRow, SubjectKind, SubjectLimits
from telemetry_store.limit_hits import LimitHit
from telemetry_store.limits import Usage
from twinmesh.ingest.v1 import ingest_policy_service_pb2 as policy_pb2
from twinmesh.ingest.v1 import limit_service_pb2 as limit_pb2


def to_policy(row: IngestPolicyRow, most: LiveWindow, *, max_connections: int) -> policy_pb2.IngestPolicy:
    """Return a policy.

    Args:
        row: as it is written.
        most: the installation's window.
        max_connections: the installation's limit.
    """
    policy = policy_pb2.IngestPolicy(
        etag=row.etag, limits=map(_to_limit, row.limits), max_connections=max_connections
    )
    if row.late_us is not None:
        policy.late_window.FromMicroseconds(row.late_us)
    if row.future_us is not None:
        policy.future_window.FromMicroseconds(row.future_us)
    if row.update_us:
        policy.update_time.FromMicroseconds(row.update_us)
    if row.raw_enabled is not None:
        policy.raw_enabled = row.raw_enabled
    if row.raw_retention is not None:
        policy.raw_retention.FromTimedelta(row.raw_retention)
    if row.dead_letter_retention is not None:
        policy.dead_letter_retention.FromTimedelta(row.dead_letter_retention)
    policy.max_late_window.FromMicroseconds(most.late_us)
    policy.max_future_window.FromMicroseconds(most.future_us)
    return policy


def to_row(policy: policy_pb2.IngestPolicy, current: IngestPolicyRow, most: LiveWindow) -> IngestPolicyRow:
    """Return what to write so that a policy is as a message says.

    Args:
        policy: by the rules of the contract.
        current: as it is written now.
        most: the installation's window.

    Raises:
        InvalidArgument: INVALID_FIELD, a window is larger than the installation's.
    """
    late_us = _window_us(policy, "late_window", most.late_us)
    future_us = _window_us(policy, "future_window", most.future_us)
    return replace(
        current,
        late_us=late_us,
        future_us=future_us,
        raw_enabled=policy.raw_enabled if policy.HasField("raw_enabled") else None,
        raw_retention=policy.raw_retention.ToTimedelta() if policy.HasField("raw_retention") else None,
        dead_letter_retention=policy.dead_letter_retention.ToTimedelta()
        if policy.HasField("dead_letter_retention")
        else None,
        limits=tuple(map(_from_limit, policy.limits)),
    )


def _window_us(policy: policy_pb2.IngestPolicy, name: str, most_us: int) -> int | None:
    if not policy.HasField(name):  # type: ignore[arg-type] # One of its fields.
        return None
    duration: Duration = getattr(policy, name)
    micros = duration.ToMicroseconds()
    if micros > most_us:
        raise invalid_field(
            f"ingest_policy.{name}",
            f"must be at most {most_us // MICROS_PER_SECOND} s, the installation's own window; "
            "leave it out to have that",
        )
    return micros


def _to_limit(limits: SubjectLimits) -> policy_pb2.Limit:
    return policy_pb2.Limit(
        subject_kind=policy_pb2.SubjectKind.ValueType(limits.kind),
        subject=limits.subject,
        samples_per_second=limits.samples_per_second,
        bytes_per_second=limits.bytes_per_second,
        streams=limits.streams,
        inflight_bytes=limits.inflight_bytes,
        connections=limits.connections,
    )


def _from_limit(limit: policy_pb2.Limit) -> SubjectLimits:
    return SubjectLimits(
        kind=SubjectKind(limit.subject_kind),
        subject=limit.subject,
        samples_per_second=limit.samples_per_second,
        bytes_per_second=limit.bytes_per_second,
        streams=limit.streams,
        inflight_bytes=limit.inflight_bytes,
        connections=limit.connections,
    )


def to_hit(hit: LimitHit) -> limit_pb2.LimitHit:
    """Return what a limit sent back."""
    message = limit_pb2.LimitHit(
        limit_name=hit.limit_name,
        subject=hit.subject,
        principal=hit.principal,
        writer_id=hit.writer_id,
        limit=hit.limit,
        batches=hit.batches,
        samples=hit.samples,
        bytes=hit.size,
        first_sequence=hit.first_sequence or 0,
        last_sequence=hit.last_sequence or 0,
    )
    message.first_time.FromMicroseconds(hit.first_us)
    message.last_time.FromMicroseconds(hit.last_us)
    return message


def to_usage(usage: Usage, limit: int) -> limit_pb2.LimitUsage:
    """Return what is used of a limit.

    Args:
        usage: as counted.
        limit: its size now, 0 when it is no more.
    """
    return limit_pb2.LimitUsage(
        limit_name=usage.key.name,
        subject=usage.key.subject,
        limit=limit,
        used=usage.used,
    )
