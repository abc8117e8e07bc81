"""What waits for the audit is handed on in messages that are taken, whatever callers made up."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from meshkit.audit import LONGEST_TEXT, AuditEvent, AuditTrail, storable_targets
from meshkit.audit_messages import to_request
from meshkit.clock import SystemClock

_MOST_OF_A_MESSAGE = 4 * 1024 * 1024
_texts = st.text(max_size=LONGEST_TEXT)


class _Over:
    """A call whose caller filled all that a record keeps."""

    def event(self, event_id: str) -> AuditEvent:
        long = "\U0001d11e" * LONGEST_TEXT
        return AuditEvent(
            id=event_id,
            time_us=2**50,
            tenant="t" * 32,
            principal=long,
            credential_id=long,
            address=long,
            rpc=long,
            targets=storable_targets([long] * 100),
            code=16,
            duration_us=2**50,
            trace_id="f" * 32,
            received=2**40,
            sent=2**40,
        )


@given(
    st.builds(
        AuditEvent,
        id=st.from_regex(r"[0-9a-f]{16}-[0-9]{1,19}", fullmatch=True),
        time_us=st.integers(0, 2**53),
        tenant=st.text(max_size=32),
        principal=_texts,
        credential_id=_texts,
        address=_texts,
        rpc=_texts,
        targets=st.lists(_texts, max_size=5).map(storable_targets),
        code=st.integers(0, 16),
        duration_us=st.integers(0, 2**53),
        trace_id=st.from_regex(r"[0-9a-f]{32}", fullmatch=True),
        changed_fields=st.lists(_texts, max_size=5),
        received=st.integers(0, 2**62),
        sent=st.integers(0, 2**62),
    )
)
async def test_no_event_takes_more_than_it_says(event: AuditEvent) -> None:
    assert (await to_request([event])).ByteSize() <= event.most_bytes


async def test_records_as_long_as_callers_can_make_them_are_handed_on_all() -> None:
    batches: list[Sequence[AuditEvent]] = []

    async def send(batch: Sequence[AuditEvent]) -> None:
        batches.append(batch)

    trail = AuditTrail(send=send, clock=SystemClock())
    async with trail:
        for _ in range(2_500):
            trail.take(_Over())

    numbers = [int(event.id.partition("-")[2]) for batch in batches for event in batch]
    assert (numbers, trail.lost) == (list(range(1, 2_501)), 0)
    assert max([(await to_request(batch)).ByteSize() for batch in batches]) < _MOST_OF_A_MESSAGE
