"""The state of one BTP connection, without I/O (RFC-0023).

Invariants: a call has exactly one outcome. Its id is in ``pending`` until the reply arrives or the caller forgets the
call, and no id is used again while a reply to it could still arrive. The id of a request from the peer is in
``serving`` until it has a reply; meanwhile a second request with that id is dropped.

``receive`` decodes one message and returns what to do, as a tuple of a ``SessionEvent`` and two values:

========== =========================== ===============================
event      first                       second
========== =========================== ===============================
ANSWER     the call                    the ILP bytes of its response, or a transfer's receipt
FAILURE    the call                    the error that it fails with
REQUEST    the request id              the ILP bytes
TRANSFER   the request id              the ``Transfer`` packet
OTHER      the request id              the entries of a Message of another sub-protocol
REPLY      the request id              the encoded reply
MALFORMED  None                        the ``DecodeError``
UNEXPECTED None                        None: a reply to no call
NOTHING    None                        None
========== =========================== ===============================
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from hashlib import sha256
from itertools import chain, repeat
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..codec import btp
from ..codec.refusals import read_error
from ..errors import (
    DecodeError,
    InvalidFieldsError,
    LedgerPluginError,
    RemoteError,
    wire_error,
)
from ..transfer import IDEMPOTENCY_KEY, TRANSFER_NUMBER, MoneyLevel, Receipt, Transfer, is_key, read_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..negotiation import PeerJournal

__all__ = [
    "ILP",
    "Session",
    "SessionEvent",
    "error_reply",
    "find_entry",
    "read_transfer",
    "remote_error",
    "request_ids",
    "response_packet",
    "transfer_packet",
]

Call = TypeVar("Call")


ILP = "ilp"


class SessionEvent(Enum):
    """What a received message means for the link; the module's docstring has the table."""

    ANSWER = "answer"
    FAILURE = "failure"
    REQUEST = "request"
    TRANSFER = "transfer"
    OTHER = "other"
    REPLY = "reply"
    MALFORMED = "malformed"
    UNEXPECTED = "unexpected"
    NOTHING = "nothing"


ANSWER, REQUEST = SessionEvent.ANSWER, SessionEvent.REQUEST
NOTHING = (SessionEvent.NOTHING, None, None)
UNEXPECTED = (SessionEvent.UNEXPECTED, None, None)

Judged = tuple[SessionEvent, Any, Any]


def request_ids() -> Iterator[int]:
    """Return the ids of a plugin's requests over all its links, from a random start upwards.

    So a delayed response never matches another call, not even on a later link.
    """
    # The interpreter runs no code of this package for the next id, as it would for a generator's.
    return chain(range(SystemRandom().getrandbits(32), 2**32), chain.from_iterable(repeat(range(2**32))))


class Session(Generic[Call]):
    """The ids and pending calls of one authenticated BTP connection.

    Args:
        pending: The calls in flight by request id; owned by the caller.
        max_entries: The most sub-protocol entries that a packet from the peer may have.
    """

    __slots__ = ("_max_entries", "pending", "serving")

    def __init__(self, pending: dict[int, Call], *, max_entries: int) -> None:
        self._max_entries = max_entries
        self.pending: dict[int, Call] = pending
        # A dictionary: an empty set takes four times as much memory.
        self.serving: dict[int, None] = {}

    def receive(self, frame: bytes) -> Judged:
        """Decode one message from the peer, and return what to do; see the module's table."""
        plain = btp.decode_ilp(frame)
        if plain is None:
            return self._receive_other(frame)
        packet_type, request_id, data = plain
        if packet_type == btp.MESSAGE:
            if request_id in self.serving:
                return NOTHING
            self.serving[request_id] = None
            return REQUEST, request_id, data
        call = self.pending.pop(request_id, None)
        if call is None:
            return UNEXPECTED
        return ANSWER, call, data

    def reject_text(self) -> Judged:
        """Return what to do about a text message: BTP has binary messages only."""
        return SessionEvent.MALFORMED, None, DecodeError("a text message; BTP packets come in binary messages")

    def _receive_other(self, frame: bytes) -> Judged:
        try:
            packet = btp.decode(frame, max_entries=self._max_entries)
        except DecodeError as error:
            return self._judge_undecodable(frame, error)
        if isinstance(packet, btp.Response | btp.Error):
            return self._judge_answer(packet)
        if packet.request_id in self.serving:
            return NOTHING
        if isinstance(packet, btp.Transfer):
            self.serving[packet.request_id] = None
            return SessionEvent.TRANSFER, packet.request_id, packet
        if not packet.protocol_data:
            # A request for nothing gets an empty response, as ilp-plugin-btp answers it.
            return SessionEvent.REPLY, packet.request_id, btp.encode(btp.Response(packet.request_id))
        self.serving[packet.request_id] = None
        data = _primary_ilp(packet.protocol_data)
        if data is None:
            return SessionEvent.OTHER, packet.request_id, packet.protocol_data
        return REQUEST, packet.request_id, data

    def _judge_undecodable(self, frame: bytes, error: DecodeError) -> Judged:
        refusal = read_error(frame)
        if refusal is not None and refusal.request_id in self.pending:
            # A refusal stays a refusal: its caller must not believe that the peer may have acted.
            failure = remote_error(refusal)
            failure.__cause__ = error
            return SessionEvent.FAILURE, self.pending.pop(refusal.request_id), failure
        if error.request_id is None:
            return SessionEvent.MALFORMED, None, error
        if error.packet_type in (btp.MESSAGE, btp.TRANSFER):
            return SessionEvent.REPLY, error.request_id, error_reply(error.request_id, InvalidFieldsError(str(error)))
        call = self.pending.pop(error.request_id, None)
        if call is None:
            return UNEXPECTED
        return SessionEvent.FAILURE, call, error

    def _judge_answer(self, packet: btp.Response | btp.Error) -> Judged:
        call = self.pending.pop(packet.request_id, None)
        if call is None:
            return UNEXPECTED
        if isinstance(packet, btp.Response):
            # Wherever the entry is: the peer has acted on the request already, and what it says about that is used.
            data = find_entry(packet.protocol_data, ILP)
            return ANSWER, call, find_entry(packet.protocol_data, TRANSFER_NUMBER) or b"" if data is None else data
        return SessionEvent.FAILURE, call, remote_error(packet)


def error_reply(request_id: int, error: LedgerPluginError) -> bytes:
    """Return the encoded Error that answers a request, with the error's own BTP code and name."""
    code, name, data = wire_error(error)
    return btp.encode(btp.Error(request_id, code, name, datetime.now(UTC), data))


def remote_error(packet: btp.Error) -> RemoteError:
    """Return the exception for an Error packet from the peer."""
    return RemoteError(
        packet.code,
        packet.name,
        triggered_at=packet.triggered_at,
        data=packet.data,
        protocol_data=packet.protocol_data,
    )


def _primary_ilp(entries: tuple[btp.ProtocolData, ...]) -> bytes | None:
    """Return the data of the first entry, which says what a packet is about; None if it is not of ILP.

    The entries behind it add to the request and ask for nothing themselves (RFC-0023, sub-protocols).
    """
    return entries[0].data if entries and entries[0].protocol_name == ILP else None


def find_entry(entries: tuple[btp.ProtocolData, ...], name: str) -> bytes | None:
    """Return the data of a sub-protocol's entry; None if there is none."""
    for entry in entries:
        if entry.protocol_name == name:
            return entry.data
    return None


def transfer_packet(request_id: int, transfer: Transfer, journal: PeerJournal | None) -> bytes:
    """Return the encoded packet of a transfer; at KEYED it has the key, and the number if the peer uses it."""
    entries: tuple[btp.ProtocolData, ...] = ()
    if transfer.level is MoneyLevel.KEYED and transfer.key is not None:
        entries = (btp.ProtocolData(IDEMPOTENCY_KEY, btp.TEXT, transfer.key.encode()),)
        if transfer.number and journal is not None and journal.offer.numbers:
            entries += (btp.ProtocolData(TRANSFER_NUMBER, btp.TEXT, b"%d" % transfer.number),)
    return btp.encode_transfer(request_id, int(transfer.amount), entries)


def response_packet(request_id: int, response: bytes | tuple[btp.ProtocolData, ...] | None) -> bytes:
    """Return the encoded packet of a response: ILP data, a receipt, a message's entries, or nothing."""
    if response is None or isinstance(response, tuple):
        return btp.encode_response(request_id, *(response or ()))
    if isinstance(response, Receipt):
        return btp.encode_response(request_id, btp.ProtocolData(TRANSFER_NUMBER, btp.TEXT, response))
    return btp.encode_ilp(btp.RESPONSE, request_id, response)


def read_transfer(packet: btp.Transfer, account: str, journal: PeerJournal | None) -> Transfer:
    """Read a peer's transfer.

    Args:
        packet: The packet.
        account: The account that sent it.
        journal: The peer's journal, to which the key belongs; on a link without one, the key is ignored.

    Raises:
        InvalidFieldsError: The amount or the key is out of its range.
    """
    if packet.amount == 0:
        raise InvalidFieldsError("amount is 0; it must be at least 1")
    amount = str(packet.amount)
    entry = find_entry(packet.protocol_data, IDEMPOTENCY_KEY)
    if journal is None or entry is None:
        return Transfer(amount, account)
    key = entry.decode("ascii", "replace")
    if not is_key(key):
        raise InvalidFieldsError("idempotency_key must be 1 to 64 ASCII characters without NUL")
    number, entries = 0, []
    for each in packet.protocol_data:
        # The number is not a part of the transfer: a sender whose journal was restored may give it another one.
        if each.protocol_name == TRANSFER_NUMBER:
            number = read_number(each.data)
        else:
            entries.append(each)
    digest = sha256(btp.encode_transfer(0, packet.amount, tuple(entries))).digest()
    return Transfer(amount, account, key=key, level=MoneyLevel.KEYED, journal=journal.id, digest=digest, number=number)
