"""Audit events as files: CSV and JSON lines. No I/O beyond memory."""

import csv
import io
import json
from collections.abc import Sequence
from enum import IntEnum

from google.rpc import code_pb2

from auth_svc.audit import StoredEvent
from meshkit.clock import MICROS_PER_SECOND, to_datetime
from meshkit.exports import ExportWriter, marked_line

_CSV_COLUMNS = (
    *("time", "principal", "credential_id", "address", "rpc", "targets", "changed_fields", "code"),
    *("duration", "trace_id", "received_messages", "sent_messages", "recorder", "id"),
)


class ExportFormat(IntEnum):
    """How an export is written; the numbers are the contract's."""

    CSV = 1
    JSON_LINES = 2


CONTENT_TYPES = {
    ExportFormat.CSV: "text/csv; charset=utf-8",
    ExportFormat.JSON_LINES: "application/jsonl",
}
SUFFIXES = {ExportFormat.CSV: "csv", ExportFormat.JSON_LINES: "jsonl"}


def export_writer(export_format: ExportFormat) -> ExportWriter[Sequence[StoredEvent]]:
    """Return a writer of a format."""
    return _CsvWriter() if export_format is ExportFormat.CSV else _JsonLinesWriter()


class _CsvWriter:
    def __init__(self) -> None:
        self._has_head = False

    def write(self, part: Sequence[StoredEvent]) -> bytes:
        sink = io.StringIO()
        rows = csv.writer(sink, lineterminator="\n")
        if not self._has_head:
            rows.writerow(_CSV_COLUMNS)
            self._has_head = True
        for stored in part:
            event = stored.event
            rows.writerow(
                (
                    _time(event.time_us),
                    event.principal,
                    event.credential_id,
                    event.address,
                    event.rpc,
                    " ".join(event.targets),
                    " ".join(event.changed_fields),
                    code_pb2.Code.Name(event.code),
                    f"{event.duration_us / MICROS_PER_SECOND:.6f}",
                    event.trace_id,
                    event.received,
                    event.sent,
                    stored.recorder,
                    event.id,
                )
            )
        return sink.getvalue().encode()

    def end(self) -> bytes:
        return self.write([])

    def failed(self, reason: str, message: str) -> bytes:
        return marked_line(reason, message)


class _JsonLinesWriter:
    def write(self, part: Sequence[StoredEvent]) -> bytes:
        return "".join(map(_json_line, part)).encode()

    def end(self) -> bytes:
        return b""

    def failed(self, reason: str, message: str) -> bytes:
        return (json.dumps({"notWhole": {"reason": reason, "message": message}}) + "\n").encode()


def _json_line(stored: StoredEvent) -> str:
    event = stored.event
    line = {
        "id": event.id,
        "time": _time(event.time_us),
        "principal": event.principal,
        "credentialId": event.credential_id,
        "address": event.address,
        "rpc": event.rpc,
        "targets": event.targets,
        "code": code_pb2.Code.Name(event.code),
        "duration": f"{event.duration_us / MICROS_PER_SECOND:.6f}s",
        "traceId": event.trace_id,
        "changedFields": event.changed_fields,
        # As 64 bits are in JSON of the contract.
        "receivedMessages": str(event.received),
        "sentMessages": str(event.sent),
        "recorder": stored.recorder,
    }
    return json.dumps(line, ensure_ascii=False) + "\n"


def _time(micros: int) -> str:
    return to_datetime(micros).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
