"""What one BTP connection remembers, without I/O (RFC-0023).

The law of this module: a request of ours has exactly one outcome. Its id stands in ``pending`` from the moment that
it is handed out until its answer, or until whoever waits for it forgets it; no id is handed out twice while an
answer to it could still come. A request of the peer's stands in ``serving`` until it is answered, and while it
stands there a second one with its id is dropped.

``receive`` judges one frame and says what is to be done, as a tuple of a ``Verdict`` and two values:

========== =========================== ===============================
verdict    first                       second
========== =========================== ===============================
ANSWER     the call                    the ILP bytes of its response
FAILURE    the call                    the error that it fails with
REQUEST    the request id              the ILP bytes
TRANSFER   the request id              the ``Transfer`` packet
REPLY      the request id              the encoded reply
MALFORMED  None                        the ``DecodeError``
UNEXPECTED None                        None: an answer to no call
NOTHING    None                        None
========== =========================== ===============================
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from itertools import count
from json import dumps
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from attrs import define, evolve, frozen

from ..codec import btp
from ..errors import (
    DecodeError,
    InvalidFieldsError,
    LedgerPluginError,
    NotAcceptedError,
    RemoteError,
    UnreachableError,
    wire_error,
)
from ..transfer import TRANSFER_KEYS, read_retention

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "AuthAnswer",
    "AuthRequest",
    "BadAuthError",
    "Session",
    "Verdict",
    "auth_accepted",
    "auth_message",
    "auth_refused",
    "error_reply",
    "read_auth",
    "read_auth_answer",
    "request_ids",
    "transfer_keys",
]

Call = TypeVar("Call")


ILP = "ilp"
AUTH = "auth"
AUTH_USERNAME = "auth_username"
AUTH_TOKEN = "auth_token"  # noqa: S105 (the name of a sub-protocol, not a token)


class Verdict(Enum):
    """What a received frame means for the link; the module's text has the table."""

    ANSWER = "answer"
    FAILURE = "failure"
    REQUEST = "request"
    TRANSFER = "transfer"
    REPLY = "reply"
    MALFORMED = "malformed"
    UNEXPECTED = "unexpected"
    NOTHING = "nothing"


ANSWER, REQUEST = Verdict.ANSWER, Verdict.REQUEST
NOTHING = (Verdict.NOTHING, None, None)
UNEXPECTED = (Verdict.UNEXPECTED, None, None)

Judged = tuple[Verdict, Any, Any]


def request_ids() -> Iterator[int]:
    """Return the ids of one plugin's requests: from a random start upwards, over all its links.

    A response that a network held back can so never meet another call, not even on a later link.
    """
    return (number & 0xFFFFFFFF for number in count(SystemRandom().getrandbits(32)))


class Session(Generic[Call]):
    """The ids and pending calls of one authenticated BTP connection.

    Args:
        pending: Where the calls in flight stand, by request id.
        max_entries: The most sub-protocol entries that a packet of the peer's may have.
    """

    __slots__ = ("_max_entries", "pending", "serving")

    def __init__(self, pending: dict[int, Call], *, max_entries: int) -> None:
        self._max_entries = max_entries
        self.pending: dict[int, Call] = pending
        self.serving: set[int] = set()

    def receive(self, frame: bytes) -> Judged:
        """Judge one message of the peer's; see the module's table."""
        plain = btp.decode_ilp(frame)
        if plain is None:
            return self._receive_other(frame)
        packet_type, request_id, data = plain
        if packet_type == btp.MESSAGE:
            if request_id in self.serving:
                return NOTHING
            self.serving.add(request_id)
            return REQUEST, request_id, data
        call = self.pending.pop(request_id, None)
        if call is None:
            return UNEXPECTED
        return ANSWER, call, data

    def reject_text(self) -> Judged:
        """Judge a text message: BTP speaks in binary ones only."""
        return Verdict.MALFORMED, None, DecodeError("a text message; BTP packets come in binary messages")

    def _receive_other(self, frame: bytes) -> Judged:
        try:
            packet = btp.decode(frame, max_entries=self._max_entries)
        except DecodeError as error:
            return self._judge_undecodable(error)
        if isinstance(packet, btp.Response | btp.Error):
            return self._judge_answer(packet)
        if packet.request_id in self.serving:
            return NOTHING
        if isinstance(packet, btp.Transfer):
            self.serving.add(packet.request_id)
            return Verdict.TRANSFER, packet.request_id, packet
        data = _find(packet.protocol_data, ILP)
        if data is None:
            # A request without ILP data gets an empty response, as ilp-plugin-btp answers it.
            return Verdict.REPLY, packet.request_id, btp.encode(btp.Response(packet.request_id))
        self.serving.add(packet.request_id)
        return REQUEST, packet.request_id, data

    def _judge_undecodable(self, error: DecodeError) -> Judged:
        if error.request_id is None:
            return Verdict.MALFORMED, None, error
        if error.packet_type in (btp.MESSAGE, btp.TRANSFER):
            return Verdict.REPLY, error.request_id, error_reply(error.request_id, InvalidFieldsError(str(error)))
        call = self.pending.pop(error.request_id, None)
        if call is None:
            return UNEXPECTED
        return Verdict.FAILURE, call, error

    def _judge_answer(self, packet: btp.Response | btp.Error) -> Judged:
        call = self.pending.pop(packet.request_id, None)
        if call is None:
            return UNEXPECTED
        if isinstance(packet, btp.Response):
            return ANSWER, call, _find(packet.protocol_data, ILP) or b""
        return Verdict.FAILURE, call, _remote_error(packet)


def error_reply(request_id: int, error: LedgerPluginError) -> bytes:
    """Return the encoded Error that answers a request, under the error's own BTP code and name."""
    code, name, data = wire_error(error)
    return btp.encode(btp.Error(request_id, code, name, datetime.now(UTC), data))


@define
class AuthRequest:
    """The credentials of a peer's first packet (RFC-0023, authentication).

    Attributes:
        request_id: The id to answer.
        username: ``auth_username``, or None where there is no such entry.
        token: ``auth_token`` as it came.
        extra: The other entries, by name.
    """

    request_id: int
    username: str | None
    token: bytes
    extra: Mapping[str, bytes]

    @property
    def peer_retention(self) -> int | None:
        """For how many seconds the client offers to keep transfer keys; None when it does not."""
        return read_retention(self.extra.get(TRANSFER_KEYS))

    def __repr__(self) -> str:
        """Show no credential."""
        return f"AuthRequest(request_id={self.request_id}, username={self.username!r}, token=***)"


def auth_message(request_id: int, account: str, token: str, flags: Mapping[str, object]) -> bytes:
    """Return the encoded first packet of a client: ``auth``, the username, the token, then the flags."""
    entries = [
        btp.ProtocolData(AUTH, btp.OCTET_STREAM, b""),
        btp.ProtocolData(AUTH_USERNAME, btp.TEXT, account.encode()),
        btp.ProtocolData(AUTH_TOKEN, btp.TEXT, token.encode()),
    ]
    entries += [_flag(*flag) for flag in flags.items()]
    return btp.encode(btp.Message(request_id, tuple(entries)))


@frozen
class AuthAnswer:
    """A server's answer to right credentials.

    Attributes:
        peer_retention: For how many seconds the server keeps transfer keys; None when it does not.
    """

    peer_retention: int | None


class BadAuthError(Exception):
    """A first packet that authenticates nobody; the text says why, fit for the peer to read.

    Attributes:
        request_id: The id to answer, or None where none could be read.
    """

    def __init__(self, reason: str, request_id: int | None = None) -> None:
        super().__init__(reason)
        self.request_id = request_id


def read_auth(frame: bytes, *, max_entries: int) -> AuthRequest:
    """Read the first packet of a client.

    Raises:
        BadAuthError: It is not an auth packet.
    """
    try:
        packet = btp.decode(frame, max_entries=max_entries)
    except DecodeError as error:
        raise BadAuthError("the first packet is not readable", error.request_id) from error
    if not isinstance(packet, btp.Message):
        raise BadAuthError("the first packet must be a Message", packet.request_id)
    entries = packet.protocol_data
    if not entries or entries[0] != btp.ProtocolData(AUTH, btp.OCTET_STREAM, b""):
        raise BadAuthError("the first entry of the first packet must be auth, without data", packet.request_id)
    by_name = {entry.protocol_name: entry for entry in entries[1:]}
    token, username = by_name.pop(AUTH_TOKEN, None), by_name.pop(AUTH_USERNAME, None)
    if token is None:
        raise BadAuthError("the first packet has no auth_token entry", packet.request_id)
    for entry in (token, username):
        if entry is not None and not _is_text(entry):
            raise BadAuthError(f"{entry.protocol_name} is not text", packet.request_id)
    name = None if username is None else username.data.decode()
    extra = {entry.protocol_name: entry.data for entry in by_name.values()}
    return AuthRequest(packet.request_id, name, token.data, extra)


def _is_text(entry: btp.ProtocolData) -> bool:
    """Whether an entry is UTF-8; older clients say octet-stream of their text."""
    try:
        entry.data.decode()
    except UnicodeDecodeError:
        return False
    return entry.content_type in (btp.TEXT, btp.OCTET_STREAM)


def auth_accepted(request_id: int, retention: int | None = None) -> bytes:
    """Return the encoded answer to right credentials; ``retention`` agrees to keep transfer keys so many seconds."""
    return btp.encode(btp.Response(request_id, tuple(_flag(*flag) for flag in transfer_keys(retention).items())))


def transfer_keys(retention: int | None) -> dict[str, str]:
    """Return the flag of the authentication that offers to keep transfer keys so many seconds; none for None."""
    return {} if retention is None else {TRANSFER_KEYS: str(retention)}


def _flag(name: str, value: object) -> btp.ProtocolData:
    """Return an entry of the kind that ilp-plugin-btp makes of such a value."""
    if isinstance(value, bytes):
        return btp.ProtocolData(name, btp.OCTET_STREAM, value)
    if isinstance(value, str):
        return btp.ProtocolData(name, btp.TEXT, value.encode())
    return btp.ProtocolData(name, btp.JSON, dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def auth_refused(request_id: int, reason: str) -> bytes:
    """Return the encoded answer to wrong credentials; its data is plain text, as ilp-plugin-btp sends it."""
    code, name = NotAcceptedError.code, NotAcceptedError.name
    return btp.encode(btp.Error(request_id, code, name, datetime.now(UTC), reason.encode()))


def read_auth_answer(frame: bytes, request_id: int, *, max_entries: int, token: str) -> AuthAnswer | None:
    """Read a server's packet while its answer to the auth packet is awaited.

    A refusal that repeats ``token`` is told without it.

    Returns:
        What it accepts with; None when it is no answer to the auth packet and is to be kept for later.

    Raises:
        NotAcceptedError: The server refuses the credentials.
        UnreachableError: The server cannot serve now, or its answer cannot be read.
    """
    try:
        packet = btp.decode(frame, max_entries=max_entries)
    except DecodeError as error:
        raise UnreachableError(f"the server's answer to the auth packet is not readable: {error}") from error
    if not isinstance(packet, btp.Response | btp.Error) or packet.request_id != request_id:
        return None
    if isinstance(packet, btp.Response):
        return AuthAnswer(read_retention(_find(packet.protocol_data, TRANSFER_KEYS)))
    name, data = packet.name.replace(token, "***"), packet.data.replace(token.encode(), b"***")
    refusal = _remote_error(evolve(packet, name=name, data=data, protocol_data=()))
    if packet.code.startswith("T"):
        raise UnreachableError(f"the server cannot authenticate now: {refusal}") from refusal
    raise NotAcceptedError(f"the server refuses the credentials: {refusal}") from refusal


def _remote_error(packet: btp.Error) -> RemoteError:
    return RemoteError(
        packet.code,
        packet.name,
        triggered_at=packet.triggered_at,
        data=packet.data,
        protocol_data=packet.protocol_data,
    )


def _find(entries: tuple[btp.ProtocolData, ...], name: str) -> bytes | None:
    return next((entry.data for entry in entries if entry.protocol_name == name), None)
