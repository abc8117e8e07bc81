"""Messages of MQTT devices, from NATS, which speaks MQTT with them.

With QoS 1 a device is told PUBACK once its message is in the stream $MQTT_msgs. A message is
acknowledged to NATS when it is durable here; one that is not, because somebody ended, is
delivered again. QoS 0 never enters the stream.

NATS would make the stream with the first device, to keep by interest: nothing for consumers to
come, and with each acknowledgement a write to disk, which halves what it takes. So it is made
here before anybody may log in, to keep what comes, and what was acknowledged is purged at once.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as BusError
from nats.js.api import ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from ingest_svc.device_message import DeviceMessage
from ingest_svc.message_path import Postponed
from meshkit import bus
from meshkit.clock import Clock, from_datetime
from meshkit.errors import ResourceExhausted, Unavailable
from meshkit.mqtt import CONSUMER, STREAM, TELEMETRY_SUBJECT
from meshkit.tasks import background

_log = structlog.get_logger()
_QUEUE = "ingest"
_SUBJECTS = "$MQTT.msgs."
_NEXT = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}"
_STREAM_BYTES = 3 << 30  # of the 4 GiB that NATS may have
# Messages that a limit postpones are pending, too: when there are so many, all have to wait.
_MAX_ACK_PENDING = 100_000
_ACK_WAIT_S = 10.0
_ASKED_MESSAGES, _ASKED_S = 1_000, 15.0
# Names of a pull request: https://docs.nats.io/reference/reference-protocols/nats_api_reference
_QUESTION = json.dumps(
    {"batch": _ASKED_MESSAGES, "max_bytes": 8 * 1024 * 1024, "expires": int(_ASKED_S * 1e9)}
).encode()
_HELD_MESSAGES, _HELD_BYTES = 6_000, 48 * 1024 * 1024
_GROUP_MESSAGES = 2_000
_GROUPS_AT_ONCE = 2
# So long messages gather: every commit is a write to disk, which NATS waits for, too.
_GATHERING_S = 0.02
_PLAIN_MESSAGES, _PLAIN_BYTES = 20_000, 16 * 1024 * 1024
_PLAIN_QOS_HEADER = "Nmqtt-Pub"
_LOOK_EVERY_S = 1.0
_FAREWELL_S = 1.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0


class MessageStore(Protocol):
    """Where messages become durable."""

    async def store(self, messages: Sequence[DeviceMessage], *, stream: str) -> Sequence[Postponed]:
        """Store messages, as MessagePath does."""
        ...


@asynccontextmanager
async def running_mqtt(url: str, *, name: str, store: MessageStore, clock: Clock) -> AsyncIterator[Client]:
    """Store what devices publish while the context is open; yields the client of the devices' account.

    Args:
        url: of the devices' account, with the credentials of ingest.
        name: shown in the server's list of connections.
        store: makes messages durable.
        clock: dates messages that are in no stream.
    """
    streamed, plain = StreamedMessages(store=store), PlainMessages(store=store, clock=clock)

    async def connected(client: Client) -> None:
        await plain.follow(client)
        await streamed.follow(client)

    async with bus.connection(url, name=name, on_connect=connected, on_reconnect=streamed.ask_anew) as client:
        try:
            async with (
                background(streamed.run(), name="mqtt-stream"),
                background(plain.run(), name="mqtt-plain"),
            ):
                yield client
        finally:
            await streamed.leave()


@dataclass(slots=True)
class _Question:
    """Messages that NATS was asked for and has not sent."""

    left: int
    until: float


class StreamedMessages:
    """Takes messages of QoS 1 from the stream, and acknowledges them once they are durable.

    Args:
        store: makes messages durable.
    """

    def __init__(self, *, store: MessageStore) -> None:
        self._store = store
        self._client: Client | None = None
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._stream = ""  # Its name among all that there have been.
        self._is_ready = False  # Our consumer is known to exist.
        self._purged = 0  # Up to which of its messages the stream has forgotten them.
        self._questions: deque[_Question] = deque()
        self._came: deque[tuple[str, Msg]] = deque()  # each with its stream
        self._held: dict[str, float] = {}  # reply subjects, and until when they are ours
        self._held_bytes = 0
        self._changed = asyncio.Event()

    async def follow(self, client: Client) -> None:
        """Take messages over a client, which is connected."""
        self._inbox = client.new_inbox()
        self._subscription = await client.subscribe(
            self._inbox, cb=self._take, pending_msgs_limit=0, pending_bytes_limit=0
        )
        self._client = client
        self._changed.set()

    def ask_anew(self) -> None:
        """Forget what was asked for: NATS may have, too, and even the consumer may be gone."""
        self._is_ready = False
        self._questions.clear()
        self._changed.set()

    async def run(self) -> None:
        """Store messages until it is cancelled."""
        while True:
            try:
                await self._run()
            except Exception:
                _log.exception("messages of devices are not taken; trying again")
                await self._give_back()
                await asyncio.sleep(_LONGEST_WAIT_S)

    async def _run(self) -> None:
        free = asyncio.Semaphore(_GROUPS_AT_ONCE)
        async with asyncio.TaskGroup() as tasks, background(self._look(), name="mqtt-look"):
            while True:
                await self._changed.wait()
                self._changed.clear()
                await self._ask()
                while self._came:
                    await free.acquire()
                    if len(self._came) < _GROUP_MESSAGES:
                        await asyncio.sleep(_GATHERING_S)
                    stored = tasks.create_task(self._store_group(*self._next_group()), name="mqtt-group")
                    stored.add_done_callback(lambda _: free.release())

    async def leave(self) -> None:
        """Take no more messages, and have NATS deliver at once, to others, what is not stored.

        Called when nothing is stored any more.
        """
        if self._subscription is not None and self._client is not None and self._client.is_connected:
            # Else it would answer our own questions with it.
            with suppress(BusError, OSError, TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await self._subscription.drain()  # type: ignore[no-untyped-call] # Ships no types.
        await self._give_back()

    async def _give_back(self) -> None:
        given, self._held = self._held, {}
        self._held_bytes = 0
        self._came.clear()
        for reply in given:
            await self._publish(reply, b"-NAK")

    async def _look(self) -> None:
        """Look after what nobody tells: questions that are lost, and messages that need more time."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            now = loop.time()
            while self._questions and self._questions[0].until < now:
                self._questions.popleft()
            self._changed.set()
            for reply, until in list(self._held.items()):
                if reply in self._held and until - now < _ACK_WAIT_S / 2:
                    self._held[reply] = now + _ACK_WAIT_S
                    await self._publish(reply, b"+WPI")
            await self._purge()

    async def _purge(self) -> None:
        """Have the stream forget what everybody has acknowledged."""
        if self._client is None or not self._is_ready:
            return
        try:
            jetstream = self._client.jetstream()
            acknowledged = (await jetstream.consumer_info(STREAM, CONSUMER)).ack_floor
            if acknowledged is not None and acknowledged.stream_seq > self._purged:
                await jetstream.purge_stream(STREAM, seq=acknowledged.stream_seq + 1)
                self._purged = acknowledged.stream_seq
        except (BusError, TimeoutError) as error:
            _log.warning("messages that are stored are not purged yet", error=repr(error))

    def _next_group(self) -> tuple[str, list[Msg]]:
        """Return the next messages to store, all of one stream, and its name."""
        stream = self._came[0][0]
        group: list[Msg] = []
        while self._came and self._came[0][0] == stream and len(group) < _GROUP_MESSAGES:
            group.append(self._came.popleft()[1])
        return stream, group

    async def _ask(self) -> None:
        if self._client is None or not self._client.is_connected:
            return
        if not self._is_ready:
            try:
                self._stream, self._purged = await ensure_consumer(self._client), 0
            except (BusError, TimeoutError) as error:
                _log.warning("messages of devices cannot be had yet", error=repr(error))
                return
            self._is_ready = True
        until = asyncio.get_running_loop().time() + _ASKED_S + _ACK_WAIT_S
        # Asked again when half has come, so that there is always something on its way.
        while (
            self._asked <= _ASKED_MESSAGES // 2
            and len(self._held) < _HELD_MESSAGES
            and self._held_bytes < _HELD_BYTES
            and await self._publish(_NEXT, _QUESTION, reply=self._inbox)
        ):
            self._questions.append(_Question(_ASKED_MESSAGES, until))

    @property
    def _asked(self) -> int:
        return sum(question.left for question in self._questions)

    async def _take(self, message: Msg) -> None:
        if not message.reply:
            self._take_status(message.headers or {})
            return
        if self._questions:
            self._questions[0].left -= 1
            if not self._questions[0].left:
                self._questions.popleft()
        self._came.append((self._stream, message))
        self._held_bytes += len(message.data)
        self._held[message.reply] = asyncio.get_running_loop().time() + _ACK_WAIT_S
        self._changed.set()

    def _take_status(self, headers: Mapping[str, str]) -> None:
        """Take what NATS says instead of messages: the oldest question has ended, or all have."""
        status = headers.get("Status", "")
        if status in ("408", "409") and "Nats-Pending-Messages" in headers:
            if self._questions:
                self._questions.popleft()
        else:
            _log.warning(
                "messages of devices are not sent", status=status, why=headers.get("Description", "")
            )
            self.ask_anew()
        self._changed.set()

    async def _store_group(self, stream: str, group: Sequence[Msg]) -> None:
        messages = [_streamed(message) for message in group]
        postponed = {
            message.sequence: each.retry_after_s
            for each in await _store(self._store, messages, stream=stream)
            for message in each.messages
        }
        for message, told in zip(group, messages, strict=True):
            await self._publish(message.reply, _answer(postponed.get(told.sequence)))
            del self._held[message.reply]
            self._held_bytes -= len(message.data)
        self._changed.set()

    async def _publish(self, subject: str, payload: bytes, *, reply: str = "") -> bool:
        if self._client is None or not self._client.is_connected:
            return False
        with suppress(BusError, OSError):
            await self._client.publish(subject, payload, reply=reply)
            return True
        return False


class PlainMessages:
    """Takes messages of QoS 0 as they pass by: best effort, as their sender has chosen.

    Args:
        store: makes messages durable.
        clock: dates them.
    """

    def __init__(self, *, store: MessageStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiting: deque[DeviceMessage] = deque()
        self._bytes = 0
        self._dropped = 0
        self._came = asyncio.Event()

    async def follow(self, client: Client) -> None:
        """Take messages over a client, which is connected; with other processes, each takes a share."""
        await client.subscribe(TELEMETRY_SUBJECT, queue=_QUEUE, cb=self._take)

    async def run(self) -> None:
        """Store messages until it is cancelled."""
        while True:
            await self._came.wait()
            self._came.clear()
            while self._waiting:
                group = [self._waiting.popleft() for _ in range(min(len(self._waiting), _GROUP_MESSAGES))]
                self._bytes -= sum(len(message.payload) for message in group)
                for postponed in await _store(self._store, group, stream=""):
                    self._dropped += len(postponed.messages)
            if self._dropped:
                _log.warning("messages of QoS 0 were dropped", messages=self._dropped)
                self._dropped = 0

    async def _take(self, message: Msg) -> None:
        if (message.headers or {}).get(_PLAIN_QOS_HEADER, "0") != "0":
            return  # It is in the stream as well.
        if len(self._waiting) >= _PLAIN_MESSAGES or self._bytes + len(message.data) > _PLAIN_BYTES:
            self._dropped += 1
            return
        self._waiting.append(DeviceMessage(_device(message.subject), message.data, self._clock.now_us()))
        self._bytes += len(message.data)
        self._came.set()


async def ensure_consumer(client: Client) -> str:
    """Make the stream and our consumer if they are not there; returns the stream's name among all.

    Raises:
        nats.errors.Error: JetStream does not answer, or refuses.
    """
    jetstream = client.jetstream()
    try:
        info = await jetstream.stream_info(STREAM)
    except NotFoundError:
        info = await jetstream.add_stream(
            StreamConfig(
                name=STREAM,
                subjects=[f"{_SUBJECTS}>"],
                retention=RetentionPolicy.LIMITS,
                storage=StorageType.FILE,
                max_bytes=_STREAM_BYTES,
                # When it is full devices get no PUBACK, and keep what they have.
                discard=DiscardPolicy.NEW,
                num_replicas=1,
            )
        )
    await jetstream.add_consumer(
        STREAM,
        ConsumerConfig(
            durable_name=CONSUMER,
            filter_subject=f"{_SUBJECTS}{TELEMETRY_SUBJECT}",
            max_ack_pending=_MAX_ACK_PENDING,
            ack_wait=_ACK_WAIT_S,
        ),
    )
    assert info.created is not None  # noqa: S101 - JetStream always says
    # A stream that was made anew begins to count at 1 again.
    return f"{from_datetime(info.created):x}"


def _answer(retry_after_s: float | None) -> bytes:
    """Return what NATS is told of a message: it is stored, or is to be delivered again after a while."""
    if retry_after_s is None:
        return b"+ACK"
    return b'-NAK {"delay": %d}' % (retry_after_s * 1e9)


async def _store(
    store: MessageStore, messages: Sequence[DeviceMessage], *, stream: str
) -> Sequence[Postponed]:
    """Store messages, trying for as long as it takes; returns what a limit keeps from it."""
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(Exception),
        wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
        before_sleep=_log_failure,
    ):
        with attempt:
            return await store.store(messages, stream=stream)
    raise AssertionError("unreachable: it tries until it has stored")


def _log_failure(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, Unavailable | ResourceExhausted):
        _log.warning("messages of devices wait", error=str(error))
    else:
        _log.error("messages of devices cannot be stored", exc_info=error)


def _device(subject: str) -> str:
    return subject.rsplit(".", 2)[1]


def _streamed(message: Msg) -> DeviceMessage:
    """Read a message by its reply subject: $JS.ACK.<stream>.<consumer>.<times>.<sequence>.<…>.<ns>.<…>."""
    sequence, _, arrival_ns = message.reply.split(".")[-4:-1]
    return DeviceMessage(_device(message.subject), message.data, int(arrival_ns) // 1000, int(sequence))
