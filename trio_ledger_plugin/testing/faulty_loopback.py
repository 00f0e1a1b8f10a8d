"""Two loopback plugins between which requests, transfers and replies are lost, delayed, duplicated and reordered.

It uses no network and no threads, so with Trio's ``MockClock`` hours pass at once.

Invariant: the delivery of a message depends only on its content and on how many equal ones came before, never on the
order in which a test's tasks run, so a seed always gives the same deliveries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from enum import Enum
from functools import partial
from random import Random
from typing import TYPE_CHECKING, TypeAlias
from uuid import uuid4

import trio
from attrs import field, frozen

from ..loopback import LoopbackOptions, LoopbackPlugin
from ..runtime.tasks import unwrap_group
from ..services import PluginServices
from ..transfer import MoneyLevel, Transfer
from .faults import as_seed

if TYPE_CHECKING:
    from ..plugin import LedgerPlugin
    from ..runtime.handlers import Reply

__all__ = [
    "Fates",
    "FaultyLoopback",
    "Message",
    "MessageKind",
    "Parcel",
    "ParcelKind",
    "RandomDelivery",
    "RandomFates",
    "open_faulty_loopback",
]


class MessageKind(Enum):
    """What the two plugins send.

    Attributes:
        REQUEST: A request of ``send_data``.
        TRANSFER: A transfer of ``send_money``.
        REPLY: The reply to one of them: a response, an acknowledgement or an error.
    """

    REQUEST = "request"
    TRANSFER = "transfer"
    REPLY = "reply"


@frozen
class Message:
    """Something on its way from one plugin to the other.

    Attributes:
        kind: Its kind.
        sender: The plugin that sent it: ``"first"`` or ``"second"``.
        content: The data of the request or the amount of the transfer; of a reply, those of the request or transfer.
        number: How many messages equal in these three came before.
    """

    kind: MessageKind
    sender: str
    content: bytes
    number: int


# Returns after how many seconds each copy arrives: (0.0,) is at once, (3.0,) late, () never, (0.0, 2.0) twice.
Fates: TypeAlias = Callable[[Message], Sequence[float]]


@frozen(kw_only=True)
class RandomDelivery:
    """Random deliveries: the same seed delivers the same messages in the same way.

    Delayed messages overtake each other, so the order changes too.

    Attributes:
        seed: The seed of the random numbers; None takes a new one.
        lose: The fraction of messages that are lost, 0 to 1.
        double: The fraction that arrive twice, the second time late.
        delay: The fraction that arrive late.
        max_delay: The longest delay, in seconds.

    Raises:
        ValueError: A number is out of range.
    """

    seed: int = field(default=None, converter=as_seed)
    lose: float = 0.05
    double: float = 0.05
    delay: float = 0.2
    max_delay: float = 5.0

    def __attrs_post_init__(self) -> None:
        parts = (self.lose, self.double, self.delay)
        if min(parts) < 0 or sum(parts) > 1 or self.max_delay < 0:
            raise ValueError(
                "lose, double and delay must be fractions with a sum of at most 1, and max_delay at least 0"
            )

    def __call__(self, message: Message) -> Sequence[float]:
        """Return after how many seconds each copy arrives."""
        identity = f"{self.seed}/{message.kind.value}/{message.sender}/{message.content.hex()}/{message.number}"
        random = Random(identity)  # noqa: S311 (must be repeatable)
        draw, late = random.random(), random.uniform(0, self.max_delay)
        if draw < self.lose:
            return ()
        if draw < self.lose + self.double:
            return (0.0, late)
        return (late,) if draw < self.lose + self.double + self.delay else (0.0,)


#: Earlier names.
Parcel = Message
ParcelKind = MessageKind
RandomFates = RandomDelivery


class _Deliveries:
    """Decides how each message is delivered, and records it."""

    def __init__(self, fates: Fates) -> None:
        self._fates = fates
        self._seen: Counter[tuple[MessageKind, str, bytes]] = Counter()
        self._contents: dict[int, bytes] = {}
        self.happened: list[tuple[Message, tuple[float, ...]]] = []

    def request(self, sender: str, request_id: int, payload: bytes | Transfer) -> tuple[float, ...]:
        if isinstance(payload, Transfer):
            times = self._decide(MessageKind.TRANSFER, sender, payload.amount.encode(), request_id)
            return times if payload.level is MoneyLevel.KEYED else times[:1]
        return self._decide(MessageKind.REQUEST, sender, payload, request_id)

    def reply(self, sender: str, request_id: int) -> tuple[float, ...]:
        return self._decide(MessageKind.REPLY, sender, self._contents[request_id], request_id)

    def _decide(self, kind: MessageKind, sender: str, content: bytes, request_id: int) -> tuple[float, ...]:
        self._contents[request_id] = content
        message = Message(kind, sender, content, self._seen[kind, sender, content])
        self._seen[kind, sender, content] += 1
        times = tuple(self._fates(message))
        self.happened.append((message, times))
        return times


class _FaultyPlugin(LoopbackPlugin):
    """One of the two plugins; messages reach it as the deliveries say."""

    def __init__(
        self,
        deliveries: _Deliveries,
        sender: str,
        options: LoopbackOptions,
        services: PluginServices,
        nursery: trio.Nursery,
    ) -> None:
        super().__init__(options, services, nursery)
        self._deliveries = deliveries
        self._peer_name = sender
        self._meetings = 0

    def meet(self, peer: LoopbackPlugin) -> None:
        """Connect to the peer."""
        self._meetings += 1
        super().meet(peer)

    def receive_request(self, number: int, request: bytes | Transfer) -> None:
        """Receive a request or transfer, as often and as late as it arrives."""
        deliver = partial(super().receive_request, number, request)
        self._deliver(deliver, self._deliveries.request(self._peer_name, number, request))

    def receive_reply(self, number: int, reply: Reply) -> None:
        """Receive a reply, as often and as late as it arrives."""
        deliver = partial(super().receive_reply, number, reply)
        self._deliver(deliver, self._deliveries.reply(self._peer_name, number))

    def _deliver(self, deliver: Callable[[], None], times: tuple[float, ...]) -> None:
        for seconds in times:
            if seconds > 0:
                self.tasks.spawn(self._deliver_late, deliver, seconds, self._meetings)
            else:
                deliver()

    async def _deliver_late(self, deliver: Callable[[], None], seconds: float, meeting: int) -> None:
        await trio.sleep(seconds)
        # A message in transit when the connection ends is lost.
        if self._peer is not None and meeting == self._meetings:
            deliver()


@frozen
class FaultyLoopback:
    """Two plugins that are each other's peers, opened by ``open_faulty_loopback()``.

    Attributes:
        first: One of them.
        second: The other.
        happened: Each message so far in the order of sending, with the times after which its copies arrive.
    """

    first: LedgerPlugin
    second: LedgerPlugin
    happened: list[tuple[Message, tuple[float, ...]]] = field(repr=False)


@asynccontextmanager
async def open_faulty_loopback(
    fates: Fates | None = None,
    *,
    services: PluginServices | None = None,
    peer_services: PluginServices | None = None,
    **limits: object,
) -> AsyncIterator[FaultyLoopback]:
    """Open two loopback plugins that are peers for the length of a block, with faults in what they send.

    A request that arrives twice is served twice, as after a retry by the sender. So is a transfer at KEYED, which its
    key makes harmless. A transfer at PLAIN never arrives twice: its promise is at most once.

    Args:
        fates: A function that returns for a message after how many seconds each copy arrives; an empty sequence loses
            it. None means ``RandomDelivery()``; an error that leaves the block has its seed in a note.
        services: The services of the first plugin.
        peer_services: The services of the second. A ``MockClock`` does not wait for a store with its own thread, such
            as the SQLite store.
        limits: Options of both plugins (``PluginOptions``), by field name.

    Yields:
        The two plugins, connected.

    Raises:
        InvalidFieldsError: A limit is wrong.
        PluginFailedError: One of them had a fatal error.

    Cancellation: Closes both at once.
    """
    fates = fates or RandomDelivery()
    deliveries = _Deliveries(fates)
    options = LoopbackOptions(name=f"faulty-{uuid4()}", **limits)  # type: ignore[arg-type]  # the options check them
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            first = _FaultyPlugin(deliveries, "second", options, services or PluginServices(), nursery)
            second = _FaultyPlugin(deliveries, "first", options, peer_services or PluginServices(), nursery)
            for plugin in (first, second):
                stack.push_async_callback(plugin.aclose)
                await plugin.connect()
            yield FaultyLoopback(first, second, deliveries.happened)
    except BaseExceptionGroup as group:
        error = unwrap_group(group)
    if error is not None:
        if isinstance(fates, RandomDelivery):
            error.add_note(f"faulty loopback: RandomDelivery(seed={fates.seed})")
        raise error
