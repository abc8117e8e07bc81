"""What replicas of twin_svc report of their frontiers, as messages: pure functions, no I/O.

A contract between services that travels over NATS, on a subject per replica
(proto/twinmesh/twin/v1/frontier_report.proto).
"""

from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from telemetry_store.commit_numbers import Coverage
from twinmesh.twin.v1 import frontier_report_pb2 as contract

SUBJECT = "twin.frontier.*"
# Seconds between two reports of a replica that has nothing new to tell, and until one is forgotten.
HEARTBEAT_S = 1.0
FORGOTTEN_AFTER_S = 3.0
_LARGEST_INSTANCE = np.iinfo(np.int32).max
_LARGEST = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class FrontierReport:
    """A report.

    Attributes:
        replica: name of a run of twin_svc.
        applied: commits that its twins show.
        leaving: it stops.
    """

    replica: str
    applied: Coverage
    leaving: bool = False


def subject_of(replica: str) -> str:
    """Return the subject that a replica reports on."""
    return f"twin.frontier.{replica}"


def encode(report: FrontierReport) -> bytes:
    """Return a report as a message."""
    return contract.FrontierReport(
        replica=report.replica,
        base=report.applied.base,
        through=report.applied.numbers,
        leaving=report.leaving,
    ).SerializeToString()


def decode(payload: bytes) -> FrontierReport:
    """Read a message.

    Raises:
        ValueError: it is no report as this module writes it.
    """
    try:
        message = contract.FrontierReport.FromString(payload)
    except DecodeError as error:
        raise ValueError("the bytes are no report") from error
    if not message.replica:
        raise ValueError("a replica has a name")
    through = dict(message.through)
    if any(instance > _LARGEST_INSTANCE for instance in (message.base, *through)):
        raise ValueError("an instance has a number that none has")
    if any(commit_no > _LARGEST for commit_no in through.values()):
        raise ValueError("a commit has a number that none has")
    return FrontierReport(message.replica, Coverage(message.base, through), message.leaving)
