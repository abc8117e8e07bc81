"""DeadLetterService: the contract's side of what was refused."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry import trace

from ingest_svc.conversion import to_micros
from ingest_svc.outcome import reason_name
from ingest_svc.replay import Replays
from meshkit import paging
from meshkit.clock import to_datetime
from meshkit.errors import InvalidArgument, not_found
from meshkit.identity import current_principal
from meshkit.time_bounds import EARLIEST_US, LATEST_US
from telemetry_store.dead_letter_store import DeadLetterStore, KeptLetter, LetterFilter, Position
from twinmesh.ingest.v1 import dead_letter_service_pb2 as contract
from twinmesh.ingest.v1 import dead_letter_service_pb2_grpc as contract_grpc
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_PAGE = 100
_MOST = 1_000
_DEVICES_IN_LIST = 20
_PURGED = 10_000
_REPLAYED_BYTES = 64 * 1024 * 1024  # of payloads in one call
_PREFIX = "ERROR_REASON_"


class DeadLetterServicer(contract_grpc.DeadLetterServiceServicer):
    """Serves twinmesh.ingest.v1.DeadLetterService.

    Args:
        letters: reads and purges them.
        replays: replays them.
    """

    def __init__(self, *, letters: DeadLetterStore, replays: Replays) -> None:
        self._letters = letters
        self._replays = replays

    async def ListDeadLetters(
        self, request: contract.ListDeadLettersRequest, context: Any
    ) -> contract.ListDeadLettersResponse:
        size = paging.page_size(request.page_size, default=_PAGE, maximum=_MOST)
        question = _question("list", request.filter)
        found = await self._letters.page(
            current_principal().tenant,
            _to_filter(request.filter),
            after=_position(question, request.page_token),
            limit=size + 1,
        )
        return contract.ListDeadLettersResponse(
            dead_letters=[_to_letter(letter, devices=_DEVICES_IN_LIST) for letter in found[:size]],
            next_page_token=_token(question, found, size),
        )

    async def CountDeadLetters(
        self, request: contract.CountDeadLettersRequest, context: Any
    ) -> contract.CountDeadLettersResponse:
        counts = await self._letters.counts(current_principal().tenant, _to_filter(request.filter))
        return contract.CountDeadLettersResponse(
            counts=[
                contract.DeadLetterCount(
                    reason=_to_reason(each.reason),
                    door=each.door,
                    dead_letters=each.letters,
                    samples=each.samples,
                )
                for each in counts
            ]
        )

    async def GetDeadLetter(
        self, request: contract.GetDeadLetterRequest, context: Any
    ) -> contract.DeadLetter:
        tenant = current_principal().tenant
        ids = [int(request.id)]
        letters = await self._letters.find(tenant, ids)
        contents = await self._letters.contents(tenant, ids)
        if not letters or not contents:
            raise not_found("dead_letter", request.id)
        letter = _to_letter(letters[0])
        _add_payload(letter, contents[ids[0]].payload)
        return letter

    async def ReplayDeadLetters(
        self, request: contract.ReplayDeadLettersRequest, context: Any
    ) -> contract.ReplayDeadLettersResponse:
        principal = current_principal()
        token = ""
        if request.ids:
            letters = await self._letters.find(principal.tenant, [int(each) for each in request.ids])
        else:
            size = paging.page_size(request.page_size, default=_PAGE, maximum=_MOST)
            question = _question("replay", request.filter)
            found = await self._letters.page(
                principal.tenant,
                _to_filter(request.filter),
                after=_position(question, request.page_token),
                limit=size + 1,
                oldest_first=True,
            )
            size = _bounded(found[:size])
            letters, token = found[:size], _token(question, found, size)
        replayed = await self._replays.replay(
            principal, letters, backfill_id=request.backfill_id, span=_span()
        )
        absent = len(request.ids) - len(letters) if request.ids else 0
        return contract.ReplayDeadLettersResponse(
            replayed=replayed.gone,
            failed=replayed.failed,
            skipped=replayed.skipped + absent,
            stored_samples=replayed.stored_samples,
            failures=[
                contract.ReplayFailure(
                    id=str(failure.dead_letter_id), reason=failure.why[0], message=failure.why[1]
                )
                for failure in replayed.failures
            ],
            next_page_token=token,
        )

    async def PurgeDeadLetters(
        self, request: contract.PurgeDeadLettersRequest, context: Any
    ) -> contract.PurgeDeadLettersResponse:
        tenant = current_principal().tenant
        ids = [int(each) for each in request.ids]
        if ids:
            if request.force:
                return contract.PurgeDeadLettersResponse(
                    purge_count=await self._letters.purge_these(tenant, ids)
                )
            return contract.PurgeDeadLettersResponse(purge_count=len(await self._letters.find(tenant, ids)))
        chosen = _to_filter(request.filter)
        if not request.force:
            counts = await self._letters.counts(tenant, chosen)
            return contract.PurgeDeadLettersResponse(purge_count=sum(each.letters for each in counts))
        purged = await self._letters.purge(tenant, chosen, most=_PURGED)
        return contract.PurgeDeadLettersResponse(purge_count=purged, more=purged == _PURGED)


def _to_filter(sent: contract.DeadLetterFilter) -> LetterFilter:
    chosen = LetterFilter(
        device_id=sent.device_id,
        reason=reason_name(sent.reason) if sent.reason else "",
        start_us=to_micros(sent.start_time) if sent.HasField("start_time") else None,
        end_us=to_micros(sent.end_time) if sent.HasField("end_time") else None,
        door=sent.door,
        text=sent.text,
    )
    if chosen.start_us is not None and chosen.end_us is not None and chosen.end_us <= chosen.start_us:
        raise InvalidArgument(
            "end_time must be after start_time", reason=ErrorReason.ERROR_REASON_TIME_RANGE_INVALID
        )
    return chosen


def _question(rpc: str, chosen: contract.DeadLetterFilter) -> list[str]:
    return [rpc, current_principal().tenant, chosen.SerializeToString(deterministic=True).hex()]


def _position(question: Sequence[str], token: str) -> Position | None:
    match paging.decode(question, token):
        case None:
            return None
        case [int(received_us), int(dead_letter_id)] if (
            EARLIEST_US <= received_us < LATEST_US and 0 < dead_letter_id < 2**63
        ):
            return received_us, dead_letter_id
        case _:
            raise paging.invalid_token()


def _token(question: Sequence[str], found: Sequence[KeptLetter], size: int) -> str:
    return paging.encode(question, found[size - 1].position) if len(found) > size else ""


def _bounded(letters: Sequence[KeptLetter]) -> int:
    """Return how many of these letters one call replays."""
    left = _REPLAYED_BYTES
    for count, letter in enumerate(letters):
        left -= letter.payload_bytes
        if count and left < 0:
            return count
    return len(letters)


def _to_letter(kept: KeptLetter, *, devices: int | None = None) -> contract.DeadLetter:
    letter = contract.DeadLetter(
        id=str(kept.dead_letter_id),
        device_ids=kept.device_ids[:devices],
        device_count=kept.device_count,
        principal=kept.principal,
        receive_time=_to_timestamp(kept.received_us),
        reason=_to_reason(kept.reason),
        message=kept.message,
        sample_count=kept.sample_count,
        door=kept.door,
        writer_id=kept.writer_id,
        sequence=kept.sequence,
        request_id=kept.request_id,
        message_id=kept.message_id,
        backfill_id=kept.backfill_id,
        trace_id=kept.trace_id,
        replay_count=kept.replay_count,
        payload_format=contract.PayloadFormat.ValueType(kept.payload_format),
        payload_bytes=kept.payload_bytes,
    )
    if kept.last_replay_us is not None:
        letter.last_replay_time.CopyFrom(_to_timestamp(kept.last_replay_us))
    return letter


def _add_payload(letter: contract.DeadLetter, payload: bytes) -> None:
    if letter.payload_format not in (contract.PAYLOAD_FORMAT_READINGS, contract.PAYLOAD_FORMAT_COLUMNS):
        letter.payload = payload
        try:
            letter.text = payload.decode()
        except UnicodeDecodeError:
            letter.ClearField("text")
        return
    letter.batch.MergeFromString(payload)
    if not all(_is_writable(reading.time) for reading in letter.batch.readings):
        letter.ClearField("batch")
        letter.payload = payload


def _is_writable(time: Timestamp) -> bool:
    """Say whether JSON has a form for a time; the transcoder would fail the whole answer."""
    try:
        time.ToJsonString()
    except ValueError:
        return False
    return True


def _to_timestamp(micros: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(to_datetime(micros))
    return timestamp


def _to_reason(name: str) -> ErrorReason.ValueType:
    """Return a reason by its name; one that this version does not know is unspecified."""
    return ErrorReason.ValueType(dict(ErrorReason.items()).get(f"{_PREFIX}{name}", 0))


def _span() -> trace.SpanContext | None:
    context = trace.get_current_span().get_span_context()
    return context if context.is_valid else None
