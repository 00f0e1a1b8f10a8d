"""How two ends agree that transfers between them are KEYED: each tells the other about its journal.

The entry ``transfer_keys`` carries it as JSON when a link is authenticated::

    {
        "retention": 604800,
        "journal": "9f2c...",
        "age": 81233.5,
        "numbers": true,
        "peer": {"journal": "41aa...", "sent": 12, "acked": 11, "received": 3, "credited": 2},
        "others": [],
    }

``peer`` is what this end knows of the transfers between the two journals; null if it has met no other journal, and
absent if it does not say. A client does not know the server's journal yet: it tells what it knows of the last one, and
in ``others`` of the earlier ones, if they are few. ``numbers`` says that the end uses the numbers of transfers.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict, frozen

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "MAX_RETENTION",
    "MIN_RETENTION",
    "TRANSFER_KEYS",
    "JournalOffer",
    "PeerJournal",
    "PeerNumbers",
    "read_offer",
]

# The sub-protocol in which the two ends offer and accept KEYED when they authenticate.
TRANSFER_KEYS: Final = "transfer_keys"
# With a shorter retention, an end could forget a key while the other end still sends the transfer again.
MIN_RETENTION: Final = 24 * 60 * 60
# A peer's number must not decide for how long this end keeps trying.
MAX_RETENTION: Final = 30 * 24 * 60 * 60
MAX_OFFER_BYTES: Final = 2048
# How many other journals an end tells about.
MAX_OTHERS: Final = 4
MAX_JOURNAL: Final = 64
# The ends go on from what the other one says, and databases have integers of 64 bits.
MAX_NUMBER: Final = 2**53 - 1


def _running_clock() -> Callable[[], float]:
    """Return a clock that cannot be set, and that goes on while the machine sleeps where the platform has one."""
    if sys.platform != "linux":
        return time.monotonic
    return partial(time.clock_gettime, time.CLOCK_BOOTTIME)


clock: Callable[[], float] = _running_clock()


@frozen
class PeerNumbers:
    """What one end knows of the KEYED transfers between its journal and the other end's.

    Each end numbers the transfers that it sends to the other's journal, and those from it that it credits; the latter
    numbers are those of its receipts.

    Attributes:
        journal: The id of the other end's journal.
        sent: The number of the last transfer that was entered to be sent.
        acked: The highest number of a receipt from the other end.
        received: The highest number of a credited transfer from the other end.
        credited: The number of the last receipt for a transfer from the other end.
    """

    journal: str
    sent: int = 0
    acked: int = 0
    received: int = 0
    credited: int = 0


@frozen
class JournalOffer:
    """What an end says about its journal when a link is authenticated.

    Attributes:
        retention: For how many seconds it keeps the key of a transfer.
        journal: The journal's id.
        age: The journal's age in seconds, as it was last recorded.
        peer: What the end knows of the transfers with the other end's journal; None if it has met none.
        tells_peer: Whether the end says what ``peer`` is.
        others: What it knows of the transfers with other journals of the peer; None if it does not tell about all.
        numbers: Whether the end uses the numbers of transfers and gives receipts.
    """

    retention: int
    journal: str
    age: float
    peer: PeerNumbers | None = None
    tells_peer: bool = False
    others: tuple[PeerNumbers, ...] | None = None
    numbers: bool = True

    def find(self, journal: str) -> PeerNumbers | None:
        """Return what the end says of the transfers with a journal; None if it does not mention it."""
        told = (self.peer, *(self.others or ()))
        return next((numbers for numbers in told if numbers is not None and numbers.journal == journal), None)

    def as_json(self) -> dict[str, Any]:
        """Return the value of the entry ``transfer_keys``."""
        told: dict[str, Any] = {"retention": self.retention, "journal": self.journal, "age": round(self.age, 3)}
        if self.numbers:
            told["numbers"] = True
        if self.tells_peer:
            told["peer"] = None if self.peer is None else asdict(self.peer)
        if self.others is not None:
            told["others"] = [asdict(numbers) for numbers in self.others]
        return told


@frozen
class PeerJournal:
    """The peer's journal, as the present link knows it.

    Attributes:
        offer: What the peer said about it.
        said: What this end said about its own journal on the same link; None if that is not known.
        read_at: When the offer was read, on a clock that cannot be set.
    """

    offer: JournalOffer
    said: JournalOffer | None = None
    read_at: float = 0.0

    @classmethod
    def of(cls, offer: JournalOffer, said: JournalOffer | None = None) -> PeerJournal:
        """Return the journal of an offer that was read just now."""
        return cls(offer, said, clock())

    @property
    def id(self) -> str:
        """The journal's id."""
        return self.offer.journal

    @property
    def retention(self) -> int:
        """For how many seconds the peer keeps keys."""
        return self.offer.retention

    def age(self) -> float:
        """Return the journal's age now, in seconds: as the peer told it, plus the time since then."""
        return self.offer.age + max(0.0, clock() - self.read_at)


def read_offer(data: bytes | None) -> JournalOffer | None:
    """Return what a peer says about its journal.

    Returns:
        None if it says nothing, if it cannot be read, or if the peer keeps keys for less than a day. A retention above
        30 days counts as 30 days.
    """
    if data is None or len(data) > MAX_OFFER_BYTES:
        return None
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict):
        return None
    retention, age, journal = _number(told.get("retention")), _number(told.get("age")), told.get("journal")
    if retention is None or retention < MIN_RETENTION or age is None or not _is_id(journal):
        return None
    kept, numbers = int(min(retention, MAX_RETENTION)), _read_numbers(told.get("peer"))
    tells_peer = numbers is not None or ("peer" in told and told["peer"] is None)
    others = _read_others(told.get("others"))
    return JournalOffer(kept, str(journal), age, numbers, tells_peer, others, told.get("numbers") is True)


def _read_others(told: object) -> tuple[PeerNumbers, ...] | None:
    if not isinstance(told, list) or len(told) > MAX_OTHERS:
        return None
    others = [numbers for numbers in map(_read_numbers, told) if numbers is not None]
    return tuple(others) if len(others) == len(told) else None


def _read_numbers(told: object) -> PeerNumbers | None:
    if not isinstance(told, dict) or not _is_id(told.get("journal")):
        return None
    values = [told.get(name) for name in ("sent", "acked", "received", "credited")]
    numbers = [value for value in values if type(value) is int and 0 <= value <= MAX_NUMBER]
    return PeerNumbers(told["journal"], *numbers) if len(numbers) == len(values) else None


def _number(value: object) -> float | None:
    """Return a number of seconds that is not negative; None for anything else."""
    if type(value) is int and 0 <= value <= MAX_NUMBER:
        return float(value)
    return value if isinstance(value, float) and isfinite(value) and value >= 0 else None


def _is_id(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= MAX_JOURNAL and value.isascii() and value.isprintable()
