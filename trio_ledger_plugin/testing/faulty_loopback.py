"""Two loopback plugins between which requests, transfers and replies get lost, late, doubled and out of order.

There is no network and no thread in it, so that Trio's ``MockClock`` makes hours of it pass at once.

The law of this module: what befalls a parcel depends on what it is and on how many like it came before, never on how
the tasks of a test take turns, so that a seed tells the same story each time.
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
    """What goes between the two plugins.

    Attributes:
        REQUEST: A request of ``send_data``.
        TRANSFER: A transfer of ``send_money``.
        REPLY: What answers one of them: a response, an acknowledgement or an error.
    """

    REQUEST = "request"
    TRANSFER = "transfer"
    REPLY = "reply"


@frozen
class Message:
    """Something on its way from one plugin to the other.

    Attributes:
        kind: What it is.
        sender: Which plugin has sent it: ``"first"`` or ``"second"``.
        content: The request's data or the transfer's amount; of a reply, those of what it answers.
        number: How many like it, in these three, came before.
    """

    kind: MessageKind
    sender: str
    content: bytes
    number: int


# Tells after how many seconds each copy of a parcel arrives: (0.0,) at once, (3.0,) late, () never, (0.0, 2.0) twice.
Fates: TypeAlias = Callable[[Message], Sequence[float]]


def _as_seed(seed: int | None) -> int:
    return Random().getrandbits(32) if seed is None else seed  # noqa: S311 (no secret)


@frozen(kw_only=True)
class RandomDelivery:
    """Fates at random: the same seed gives the same parcels the same fates.

    Parcels that are late overtake each other: that is how they get out of order.

    Attributes:
        seed: Where the randomness comes from; None takes one that nobody has chosen.
        lose: The part of the parcels that is lost, 0 to 1.
        double: The part that arrives twice, the second time late.
        delay: The part that arrives late.
        max_delay: The longest delay, in seconds.

    Raises:
        ValueError: A number is out of its range.
    """

    seed: int = field(default=None, converter=_as_seed)
    lose: float = 0.05
    double: float = 0.05
    delay: float = 0.2
    max_delay: float = 5.0

    def __attrs_post_init__(self) -> None:
        parts = (self.lose, self.double, self.delay)
        if min(parts) < 0 or sum(parts) > 1 or self.max_delay < 0:
            raise ValueError("lose, double and delay are parts of one whole, and max_delay is 0 at least")

    def __call__(self, parcel: Message) -> Sequence[float]:
        """Return the parcel's fate."""
        identity = f"{self.seed}/{parcel.kind.value}/{parcel.sender}/{parcel.content.hex()}/{parcel.number}"
        random = Random(identity)  # noqa: S311 (to be repeated)
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


class _Carrier:
    """Decides what befalls the parcels between two plugins, and remembers it."""

    def __init__(self, fates: Fates) -> None:
        self._fates = fates
        self._seen: Counter[tuple[MessageKind, str, bytes]] = Counter()
        self._contents: dict[int, bytes] = {}
        self.happened: list[tuple[Message, tuple[float, ...]]] = []

    def request(self, sender: str, request_id: int, payload: bytes | Transfer) -> tuple[float, ...]:
        if isinstance(payload, Transfer):
            fate = self._decide(MessageKind.TRANSFER, sender, payload.amount.encode(), request_id)
            return fate if payload.level is MoneyLevel.KEYED else fate[:1]
        return self._decide(MessageKind.REQUEST, sender, payload, request_id)

    def reply(self, sender: str, request_id: int) -> tuple[float, ...]:
        return self._decide(MessageKind.REPLY, sender, self._contents[request_id], request_id)

    def _decide(self, kind: MessageKind, sender: str, content: bytes, request_id: int) -> tuple[float, ...]:
        self._contents[request_id] = content
        parcel = Message(kind, sender, content, self._seen[kind, sender, content])
        self._seen[kind, sender, content] += 1
        fate = tuple(self._fates(parcel))
        self.happened.append((parcel, fate))
        return fate


class _FaultyPlugin(LoopbackPlugin):
    """One of two plugins; what comes to it has been on its way."""

    def __init__(
        self, carrier: _Carrier, sender: str, options: LoopbackOptions, services: PluginServices, nursery: trio.Nursery
    ) -> None:
        super().__init__(options, services, nursery)
        self._carrier = carrier
        # Who sends what comes here.
        self._sender = sender
        self._meetings = 0

    def meet(self, peer: LoopbackPlugin) -> None:
        """Be connected to the peer, perhaps again."""
        self._meetings += 1
        super().meet(peer)

    def receive_request(self, number: int, request: bytes | Transfer) -> None:
        """Take a request or transfer of the peer's, as often and as late as it arrives."""
        deliver = partial(super().receive_request, number, request)
        self._deliver(deliver, self._carrier.request(self._sender, number, request))

    def receive_reply(self, number: int, reply: Reply) -> None:
        """Take the answer to a call of ours, as often and as late as it arrives."""
        deliver = partial(super().receive_reply, number, reply)
        self._deliver(deliver, self._carrier.reply(self._sender, number))

    def _deliver(self, deliver: Callable[[], None], fate: tuple[float, ...]) -> None:
        for seconds in fate:
            if seconds > 0:
                self.tasks.spawn(self._deliver_late, deliver, seconds, self._meetings)
            else:
                deliver()

    async def _deliver_late(self, deliver: Callable[[], None], seconds: float, meeting: int) -> None:
        await trio.sleep(seconds)
        # What was on its way when the connection ended is lost with it.
        if self._peer is not None and meeting == self._meetings:
            deliver()


@frozen
class FaultyLoopback:
    """Two plugins that are peers, opened by ``open_faulty_loopback()``.

    Attributes:
        first: One of them.
        second: The other.
        happened: Each parcel so far with its fate, in the order in which they were sent.
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
    """Open two loopback plugins that are peers, for the length of a block, and let faults befall what they send.

    A request that arrives twice is served twice, as after a retry by whoever made it; so is a transfer at KEYED, which
    its key makes harmless. A transfer at PLAIN never arrives twice: at most once is what is promised of it.

    Args:
        fates: A script: a function that returns, for a message, after how many seconds each copy of it arrives, and
            nothing for a message that is lost. None is ``RandomDelivery()``, whose seed an error that leaves the block
            has in a note.
        services: What the first plugin is given.
        peer_services: What the second is given. A store with a thread of its own, such as SQLite's, does not hold up
            a ``MockClock``.
        limits: Options of both plugins (``PluginOptions``), by field name.

    Yields:
        The two plugins, connected.

    Raises:
        InvalidFieldsError: A limit is wrong.
        PluginFailedError: One of them met a fatal error.

    Cancellation: Closes both at once.
    """
    fates = fates or RandomDelivery()
    carrier = _Carrier(fates)
    options = LoopbackOptions(name=f"faulty-{uuid4()}", **limits)  # type: ignore[arg-type]  # the options check them
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            first = _FaultyPlugin(carrier, "second", options, services or PluginServices(), nursery)
            second = _FaultyPlugin(carrier, "first", options, peer_services or PluginServices(), nursery)
            for plugin in (first, second):
                stack.push_async_callback(plugin.aclose)
                await plugin.connect()
            yield FaultyLoopback(first, second, carrier.happened)
    except BaseExceptionGroup as group:
        error = unwrap_group(group)
    if error is not None:
        if isinstance(fates, RandomDelivery):
            error.add_note(f"faulty loopback: RandomDelivery(seed={fates.seed})")
        raise error
