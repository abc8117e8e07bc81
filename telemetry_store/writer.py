"""The telemetry writer: many callers' batches, one transaction after another.

Callers wait; one task drains what waits into a group, prepares its rows while the last
group commits, and commits it. What a group's failure means is decided here: content
that PostgreSQL refuses is searched for and recorded as refused, everything else is
transient and consumes nothing.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager, suppress
from types import TracebackType
from typing import Self

import asyncpg
import structlog
from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN, Link, NonRecordingSpan, Span

from meshkit.errors import DomainError, InvalidArgument, dependency_unavailable
from meshkit.telemetry import tracer
from telemetry_store.batch import Batch, Judge, Prepared, prepare
from telemetry_store.commit import Commit, Stored
from telemetry_store.committer import Committer, ContentRefusedError, TransientError
from telemetry_store.cursors import LOCK_WAIT_S, CursorKey, Opening, locked_elsewhere
from telemetry_store.instances import Registration
from telemetry_store.openings import Openings
from telemetry_store.pacing import BULK_SAMPLES, Pause, pause_after
from telemetry_store.requests import MessageIdentity, OpenedCursor, WriteRequest, WriteResult
from telemetry_store.waiting import WaitingBatches
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
_WINDOW_S = 0.004
_SKIPPED_RETRY_S = 0.02
_ALONE_FOR_S = 60.0
_DRAIN_S = 15.0
_BULK_BYTES = 64 * 1024  # From so many on raw messages are compressed in a thread.
_WAITING_SAMPLES = 4_000_000
_WAITING_BYTES = 256 * 1024 * 1024


class TelemetryWriter:
    """Makes batches durable, exactly once for those with an identity.

    Args:
        pool: of the ingest role, with three connections or more; two are held.
        max_waiting_samples: most samples in memory before callers are told to wait.
        max_waiting_bytes: most bytes of them.
        judge: judges samples that are about to be stored; None: nobody does.
        refusal: tells why nothing new is taken now; None: it is.
        window_s: how long small batches wait for others before each commit while many come, in
            seconds.
        on_committed: told of every commit once its callers are answered.
        on_group: told of every group that went through a transaction, and how many seconds that took.
    """

    def __init__(
        self,
        *,
        pool: asyncpg.Pool,
        max_waiting_samples: int = _WAITING_SAMPLES,
        max_waiting_bytes: int = _WAITING_BYTES,
        judge: Judge | None = None,
        refusal: Callable[[], DomainError | None] = lambda: None,
        window_s: float = _WINDOW_S,
        on_committed: Callable[[Commit], None] = lambda _: None,
        on_group: Callable[[Stored, float], None] = lambda *_: None,
    ) -> None:
        self._judge = judge
        self._refusal = refusal
        self._window_s = window_s
        self._on_committed = on_committed
        self._on_group = on_group
        self._waiting = WaitingBatches(
            max_samples=max_waiting_samples, max_bytes=max_waiting_bytes, refuse_when_closed=_stopping
        )
        self._openings = Openings(pool=pool)
        self._registration = Registration(pool=pool)
        self._committer = Committer(pool=pool, registration=self._registration, prepare=self._prepare)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self._in_thread = 0
        self._alone_until: dict[tuple[str, str], float] = {}
        self._stack = AsyncExitStack()
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to take batches; the database may still be away."""
        self._stack.callback(self._thread.shutdown)
        await self._stack.enter_async_context(self._registration)
        await self._stack.enter_async_context(self._committer)
        await self._stack.enter_async_context(self._openings)
        self._running = asyncio.create_task(self._run(), name="telemetry-writer")
        self._stack.push_async_callback(_cancel, self._running)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take no more batches, commit those that wait, and close the instance."""
        self._waiting.close()
        try:
            if self._running is not None:
                await asyncio.wait([self._running], timeout=_DRAIN_S)
        finally:
            self._waiting.settle_all(_stopping)
            await self._stack.aclose()

    @property
    def waiting(self) -> WaitingBatches:
        """Return what waits for its answers."""
        return self._waiting

    def submit(self, request: WriteRequest) -> asyncio.Future[WriteResult]:
        """Let a batch in, to be committed with others, and return its answer to come.

        Batches are taken in the order of the calls. Cancelling the future drops the batch
        if it still waits; once its group is under way it may be committed all the same. A
        future that is let go drops nothing, and its error is nobody's: it is not logged.

        Returns:
            A future with the result once the batch is durable, or with what `write` raises.

        Raises:
            ResourceExhausted: INGEST_BUSY or STORAGE_FULL; nothing was taken.
            Unavailable: DEPENDENCY_UNAVAILABLE, the writer is stopping; nothing was taken.
        """
        if (refusal := self._refusal()) is not None:
            raise refusal
        return self._waiting.enter(request)

    async def write(self, request: WriteRequest) -> WriteResult:
        """Submit a batch and return once it is durable.

        Raises:
            FailedPrecondition: SEQUENCE_GAP, OUTCOME_EXPIRED or FENCED.
            InvalidArgument: SEQUENCE_REUSED, REQUEST_ID_REUSED, or VALUE_REFUSED when
                PostgreSQL refuses the identity itself.
            PermissionDenied: WRITER_NOT_OWNED.
            ResourceExhausted: INGEST_BUSY or STORAGE_FULL; nothing was taken.
            Unavailable: DEPENDENCY_UNAVAILABLE; sent again under the same identity the
                batch is committed once.
        """
        return await self.submit(request)

    async def open_writer(
        self, *, tenant: str, principal: str, writer_id: str, session_id: str = "", resume: bool = False
    ) -> OpenedCursor:
        """Raise a writer's epoch, which fences its older streams, and return its place.

        Args:
            tenant: whose writer, from the verified identity.
            principal: who opens it.
            writer_id: the writer.
            session_id: the run of the client that opens it.
            resume: only if no other run has opened it since this one did.

        Raises:
            PermissionDenied: WRITER_NOT_OWNED.
            FailedPrecondition: FENCED; nothing changed.
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        return await self._openings.open(Opening((tenant, writer_id), principal, session_id, resume))

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            committing: asyncio.Task[Pause | None] | None = None
            while True:
                if not await self._waiting.arrival():  # Closed, and nothing waits …
                    if committing is None:
                        return
                    await committing  # … unless this defers something.
                    committing = None
                    continue
                pause = None
                if committing is not None and not committing.done():
                    await self._full_group_or(committing)
                    pause = committing.result() if committing.done() else None
                if committing is None or committing.done():
                    await self._gather(pause)
                group = self._waiting.drain()
                prepared = await self._prepare_ahead(group)
                if committing is not None:
                    await committing
                committing = tasks.create_task(self._commit(group, prepared), name="telemetry-commit")

    async def _gather(self, pause: Pause | None) -> None:
        """Give batches a moment to become one group."""
        if self._waiting.only_deferred:
            pause = Pause(_SKIPPED_RETRY_S, _SKIPPED_RETRY_S)
        if pause is None:
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + pause.at_most_s
        while loop.time() < end:
            came = self._waiting.came
            try:
                async with asyncio.timeout_at(min(end, loop.time() + pause.quiet_s)):
                    await self._waiting.full_group()
                return
            except TimeoutError:
                if self._waiting.came == came:
                    return

    async def _full_group_or(self, committing: asyncio.Task[Pause | None]) -> None:
        """Wait for a full group, or for the end of the commit: small groups then become one.

        A full one is worth preparing meanwhile.
        """
        full = asyncio.create_task(self._waiting.full_group())
        await asyncio.wait((full, committing), return_when=asyncio.FIRST_COMPLETED)
        full.cancel()

    async def _prepare(self, batches: Sequence[Batch]) -> Prepared:
        samples, raw_bytes = sum(batch.size for batch in batches), sum(batch.raw_bytes for batch in batches)
        # What is small goes after what is in the thread, not beside it: the loop would wait for the judge.
        if samples < BULK_SAMPLES and raw_bytes < _BULK_BYTES and not self._in_thread:
            return prepare(batches, self._judge)
        self._in_thread += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, prepare, batches, self._judge
            )
        finally:
            self._in_thread -= 1

    async def _prepare_ahead(self, batches: Sequence[Batch]) -> Prepared | None:
        try:
            return await self._prepare(batches)
        except Exception:
            return None  # The commit meets it again, and knows what to do about it.

    async def _commit(self, group: list[Batch], prepared: Prepared | None) -> Pause | None:
        """Commit a group and answer its callers; says what pause it is worth."""
        group = self._waiting.take_deferred() + group
        began = asyncio.get_running_loop().time()
        skipped: set[CursorKey] = set()
        try:
            for unit in self._units(group):
                await self._commit_unit(unit, prepared, skipped)
        except Exception as error:
            # A defect; its callers are told, and the others' batches go on.
            _log.exception("group failed")
            for batch in group:
                self._waiting.settle(batch, error)
        return pause_after(
            batches=len(group),
            samples=sum(batch.size for batch in group),
            took_s=asyncio.get_running_loop().time() - began,
            window_s=self._window_s,
        )

    def _units(self, group: Sequence[Batch]) -> list[list[Batch]]:
        """Split a group: senders of bad content commit alone for a while."""
        now = asyncio.get_running_loop().time()
        self._alone_until = {sender: until for sender, until in self._alone_until.items() if until > now}
        together: list[Batch] = []
        alone: dict[tuple[str, str], list[Batch]] = {}
        for batch in group:
            if batch.sender in self._alone_until:
                alone.setdefault(batch.sender, []).append(batch)
            else:
                together.append(batch)
        return [unit for unit in (together, *alone.values()) if unit]

    async def _commit_unit(
        self, batches: Sequence[Batch], prepared: Prepared | None, skipped: set[CursorKey]
    ) -> None:
        """Commit batches and answer their callers.

        Args:
            batches: in arrival order.
            prepared: rows of the whole group.
            skipped: cursors that the group has found locked elsewhere; adds to them. Unlocked since,
                they wait all the same: the batch that was skipped comes first.
        """
        for batch in batches:
            if (key := batch.cursor_key) in skipped:
                self._defer(batch, key)
        batches = [batch for batch in batches if batch.cursor_key not in skipped]
        if not batches:
            return
        began = time.monotonic()
        try:
            with _commit_span(batches) as span:
                stored = await self._committer.commit(batches, prepared)
                took_s = time.monotonic() - began
                commit = stored.commit
                span.set_attribute("twinmesh.samples", commit.samples if commit is not None else 0)
                if commit is not None:
                    span.set_attribute("twinmesh.instance", commit.numbers.instance)
                    span.set_attribute("twinmesh.commit_no", commit.numbers.commit_no)
                    span.set_attribute("twinmesh.order_no", commit.numbers.order_no)
        except TransientError as error:
            _log.warning("group was not committed", batches=len(batches), error=str(error))
            for batch in batches:
                self._waiting.settle(batch, _database_away())
        except ContentRefusedError as error:
            await self._search(batches, error, skipped)
        else:
            for batch in batches:
                answer = stored.answers.get(batch)
                if answer is not None:
                    self._waiting.settle(batch, answer)
                elif (key := batch.cursor_key) is not None:
                    skipped.add(key)
                    self._defer(batch, key)
            self._tell(stored, took_s)

    def _tell(self, stored: Stored, took_s: float) -> None:
        """Tell whoever follows commits; that it goes wrong is nobody's who waits for an answer."""
        try:
            if stored.commit is not None:
                self._on_committed(stored.commit)
            self._on_group(stored, took_s)
        except Exception:
            _log.exception("a group was not told of", commit=stored.commit and stored.commit.numbers)

    async def _search(
        self, batches: Sequence[Batch], error: ContentRefusedError, skipped: set[CursorKey]
    ) -> None:
        """Halve a refused group until the bad batch is alone, and record its refusal.

        The first half commits first, so a refusal is recorded before the same writer's
        next batch.
        """
        if len(batches) > 1:
            half = len(batches) // 2
            await self._commit_unit(batches[:half], None, skipped)
            await self._commit_unit(batches[half:], None, skipped)
            return
        batch = batches[0]
        if batch.refused:
            self._waiting.settle(batch, _identity_refused())
            return
        if isinstance(batch.request.identity, MessageIdentity):
            # Which of the messages it is, their caller finds out.
            self._waiting.settle(batch, _messages_refused())
            return
        _log.warning("content refused", tenant=batch.request.tenant, sender=batch.sender[1], error=str(error))
        batch.refused = True
        self._alone_until[batch.sender] = asyncio.get_running_loop().time() + _ALONE_FOR_S
        await self._commit_unit(batches, None, skipped)

    def _defer(self, batch: Batch, key: CursorKey) -> None:
        """Let a batch whose cursor is locked elsewhere wait for the next group, not for ever."""
        now = asyncio.get_running_loop().time()
        if batch.skipped_since is None:
            batch.skipped_since = now
        if now - batch.skipped_since <= LOCK_WAIT_S:
            self._waiting.defer(batch)
            return
        self._committer.forget(key)
        self._waiting.settle(batch, locked_elsewhere(key[1]))


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@contextmanager
def _commit_span(batches: Sequence[Batch]) -> Iterator[Span]:
    """Trace a commit in the trace of its first recorded batch, linked to all of them."""
    contexts = [batch.request.span for batch in batches if batch.request.span is not None]
    recorded = [context for context in contexts if context.trace_flags.sampled]
    if not recorded:
        yield INVALID_SPAN
        return
    with tracer.start_as_current_span(
        "telemetry.commit",
        context=trace.set_span_in_context(NonRecordingSpan(recorded[0])),
        links=[Link(context) for context in {context.span_id: context for context in recorded}.values()],
        attributes={"twinmesh.batches": len(batches)},
    ) as span:
        yield span


def _database_away() -> DomainError:
    return dependency_unavailable("postgresql")


def _stopping() -> DomainError:
    return dependency_unavailable("ingest_svc")


def _messages_refused() -> DomainError:
    return InvalidArgument(
        "the database refuses a value of these messages", reason=ErrorReason.ERROR_REASON_VALUE_REFUSED
    )


def _identity_refused() -> DomainError:
    return InvalidArgument(
        "the database refuses the request id or writer id itself; choose another",
        reason=ErrorReason.ERROR_REASON_VALUE_REFUSED,
    )
