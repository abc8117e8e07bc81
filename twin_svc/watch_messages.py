"""What watches tell, as bytes of the contract's WatchTwinsResponse."""

from collections.abc import Iterable, Iterator

from meshkit import wire
from meshkit.errors import DomainError
from twin_svc import tokens
from twin_svc.messages import twin_message
from twin_svc.twins import Twin
from twin_svc.watch import Bookmark, Change, Enter, Event, Gap, Leave, Snapshot, SnapshotEnd
from twinmesh.twin.v1 import twin_service_pb2 as contract

_PART_BYTES = 1024 * 1024
# Watches that are told the same are told it at about the same time.
_TWINS_KEPT = 10_000
_EVENT_FIELDS = {
    name: field.number for name, field in contract.WatchTwinsResponse.DESCRIPTOR.fields_by_name.items()
}
_TWINS_FIELD = contract.Change.DESCRIPTOR.fields_by_name["twins"].number


class WatchMessages:
    """Writes events; a twin that many watches are told of is written once for all of them."""

    def __init__(self) -> None:
        # By the identity of a twin, which is kept with it: twins are equal when 1 is 1.0.
        self._written: dict[int, tuple[Twin, bool | None, bytes]] = {}

    def responses(self, event: Event, now_us: int) -> Iterator[bytes]:
        """Yield an event in messages of a size that every client takes."""
        match event:
            case Snapshot(twins):
                yield from self._with_twins("snapshot", twins, now_us)
            case Change(twins):
                yield from self._with_twins("change", twins, now_us)
            case Enter(twins):
                yield from self._with_twins("enter", twins, now_us)
            case Leave(ids):
                yield contract.WatchTwinsResponse(leave=contract.Leave(ids=ids)).SerializeToString()
            case SnapshotEnd():
                end = contract.SnapshotEnd(resume_token=resume_token(event))
                yield contract.WatchTwinsResponse(snapshot_end=end).SerializeToString()
            case Bookmark():
                bookmark = contract.Bookmark(resume_token=resume_token(event))
                yield contract.WatchTwinsResponse(bookmark=bookmark).SerializeToString()
            case Gap():
                gap = contract.Gap(reason=contract.GAP_REASON_EXPIRED)
                yield contract.WatchTwinsResponse(gap=gap).SerializeToString()

    def _with_twins(self, event: str, twins: Iterable[Twin], now_us: int) -> Iterator[bytes]:
        part: list[bytes] = []
        size = 0
        for twin in twins:
            written = self._twin(twin, now_us)
            size += len(written)
            if part and size > _PART_BYTES:
                yield wire.field(_EVENT_FIELDS[event], b"".join(part))
                part, size = [], len(written)
            part.append(written)
        if part:
            yield wire.field(_EVENT_FIELDS[event], b"".join(part))

    def _twin(self, twin: Twin, now_us: int) -> bytes:
        """Return a twin as one of the field `twins`, which is the same in all events."""
        online = twin.is_online(now_us)
        known = self._written.get(id(twin))
        if known is not None and known[1] is online:
            return known[2]
        if len(self._written) >= _TWINS_KEPT:
            self._written.clear()
        written = wire.field(_TWINS_FIELD, twin_message(twin, now_us).SerializeToString())
        self._written[id(twin)] = twin, online, written
        return written


def resume_token(event: Event) -> str:
    """Return where a watch may go on behind an event; "" when the event does not tell."""
    return tokens.encode(event.point) if isinstance(event, SnapshotEnd | Bookmark) else ""


def end_response(error: DomainError, resume_token: str) -> bytes:
    """Return what a watch says at last."""
    end = contract.End(reason=error.reason, message=error.message, resume_token=resume_token)
    return contract.WatchTwinsResponse(end=end).SerializeToString()
