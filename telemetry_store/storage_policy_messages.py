"""Storage policies between messages and rows: for who writes them, and who tells what they do."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from meshkit.updates import changed_fields, updated
from meshkit.validation import validate
from telemetry_store.storage_policies import (
    AGES,
    STORAGE_POLICIES,
    Retention,
    StoragePolicyRow,
    require_sense,
)
from twinmesh.ingest.v1 import storage_policy_service_pb2 as policy_pb2


def to_policy(row: StoragePolicyRow, *, effective: Retention) -> policy_pb2.StoragePolicy:
    """Return a policy as it is written, and what it comes to."""
    policy = policy_pb2.StoragePolicy(etag=row.etag)
    policy.effective.SetInParent()
    for age in AGES:
        if (said := getattr(row, age)) is not None:
            getattr(policy, age).FromTimedelta(said)
        if (holds := getattr(effective, age)) is not None:
            getattr(policy.effective, age).FromTimedelta(holds)
    if row.update_us:
        policy.update_time.FromMicroseconds(row.update_us)
    return policy


def changed(
    row: StoragePolicyRow, sent: policy_pb2.StoragePolicy, paths: Sequence[str], *, effective: Retention
) -> tuple[StoragePolicyRow, list[str]]:
    """Return what to write so that a policy is as an update says, and which fields that changes.

    Args:
        row: as it is written now.
        sent: the new values, by the rules of the contract.
        paths: which of them to take over.
        effective: what the row comes to.

    Raises:
        Aborted: ETAG_MISMATCH.
        InvalidArgument: INVALID_FIELD or FIELD_IMMUTABLE.
    """
    STORAGE_POLICIES.require_etag(row, sent.etag)
    current = to_policy(row, effective=effective)
    policy = updated(current, sent, paths)
    # What a mask puts together was not seen by the interceptor.
    validate(policy)
    made = replace(row, **_ages(policy))
    require_sense(made)
    return made, changed_fields(current, policy)


def _ages(policy: policy_pb2.StoragePolicy) -> dict[str, Any]:
    return {
        age: getattr(policy, age).ToTimedelta() if policy.HasField(age) else None  # type: ignore[arg-type] # Fields.
        for age in AGES
    }
