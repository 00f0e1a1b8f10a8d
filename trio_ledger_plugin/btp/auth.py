"""The first packet of a BTP connection and the reply to it, without I/O (RFC-0023, authentication)."""

from __future__ import annotations

from datetime import UTC, datetime
from json import dumps
from typing import TYPE_CHECKING

from attrs import define, evolve, frozen

from ..codec import btp
from ..codec.refusals import read_error
from ..errors import DecodeError, NotAcceptedError, UnreachableError
from ..negotiation import TRANSFER_KEYS, JournalOffer, read_offer
from .session import find_entry, remote_error

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "AUTH_TOKEN",
    "AuthAnswer",
    "AuthRequest",
    "BadAuthError",
    "auth_accepted",
    "auth_message",
    "auth_refused",
    "read_auth",
    "read_auth_answer",
    "transfer_keys",
]

AUTH = "auth"
AUTH_USERNAME = "auth_username"
AUTH_TOKEN = "auth_token"  # noqa: S105 (the name of a sub-protocol, not a token)


@define
class AuthRequest:
    """The credentials in the first packet of a connection (RFC-0023, authentication).

    Attributes:
        request_id: The id to answer.
        username: ``auth_username``; None if there is no such entry.
        token: ``auth_token``, as received.
        extra: The other entries, by name.
    """

    request_id: int
    username: str | None
    token: bytes
    extra: Mapping[str, bytes]

    @property
    def offer(self) -> JournalOffer | None:
        """What the client says about its journal; None if it does not keep transfer keys."""
        return read_offer(self.extra.get(TRANSFER_KEYS))

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
    """A server's reply to correct credentials.

    Attributes:
        offer: What the server says about its journal; None if it does not keep transfer keys.
    """

    offer: JournalOffer | None


class BadAuthError(Exception):
    """The first packet does not authenticate the peer. The peer may read the text.

    Attributes:
        request_id: The id to answer; None if the packet has no readable id.
        account: The account that the packet asks for; empty if it names none, or is not readable.
        is_temporary: Whether another try may succeed with the same credentials.
    """

    def __init__(
        self, reason: str, request_id: int | None = None, *, account: str = "", is_temporary: bool = False
    ) -> None:
        super().__init__(reason)
        self.account = account
        self.request_id = request_id
        self.is_temporary = is_temporary


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
    """Whether an entry is UTF-8 text; older clients send text as octet-stream."""
    try:
        entry.data.decode()
    except UnicodeDecodeError:
        return False
    return entry.content_type in (btp.TEXT, btp.OCTET_STREAM)


def auth_accepted(request_id: int, offer: JournalOffer | None = None) -> bytes:
    """Return the encoded reply to correct credentials.

    Args:
        request_id: The id of the auth packet.
        offer: What this end says about its journal; None if it does not keep transfer keys.
    """
    return btp.encode(btp.Response(request_id, tuple(_flag(*flag) for flag in transfer_keys(offer).items())))


def transfer_keys(offer: JournalOffer | None) -> dict[str, object]:
    """Return the auth flag that offers to keep transfer keys; empty for None."""
    return {} if offer is None else {TRANSFER_KEYS: offer.as_json()}


def _flag(name: str, value: object) -> btp.ProtocolData:
    """Return the entry that ilp-plugin-btp makes of such a value."""
    if isinstance(value, bytes):
        return btp.ProtocolData(name, btp.OCTET_STREAM, value)
    if isinstance(value, str):
        return btp.ProtocolData(name, btp.TEXT, value.encode())
    return btp.ProtocolData(name, btp.JSON, dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def auth_refused(request_id: int, reason: str, *, is_temporary: bool = False) -> bytes:
    """Return the encoded reply to an auth packet that is refused; its data is plain text, as ilp-plugin-btp sends it.

    Args:
        request_id: The id of the auth packet.
        reason: Why, for the client to read.
        is_temporary: Whether another try may succeed with the same credentials: the code is T00 then, else F00.
    """
    error = UnreachableError if is_temporary else NotAcceptedError
    code, name = error.code, error.name
    return btp.encode(btp.Error(request_id, code, name, datetime.now(UTC), reason.encode()))


def read_auth_answer(
    frame: bytes, request_id: int, *, max_entries: int, token: str, advice: str = ""
) -> AuthAnswer | None:
    """Read a packet that a server sends while this end waits for the reply to its auth packet.

    Args:
        frame: The packet.
        request_id: The id of the auth packet.
        max_entries: The most entries that the packet may have.
        token: The token. If a refusal repeats it, the error shows ``***`` instead.
        advice: What to do if the server refuses the credentials; the end of the error's text.

    Returns:
        The server's reply; None if the packet is not the reply and must be kept for later.

    Raises:
        NotAcceptedError: The server refuses the credentials.
        UnreachableError: The server cannot serve now, or its answer cannot be read.
    """
    try:
        packet: btp.Packet = btp.decode(frame, max_entries=max_entries)
    except DecodeError as error:
        readable = read_error(frame)
        if readable is None:
            raise UnreachableError(f"the server's answer to the auth packet is not readable: {error}") from error
        packet = readable
    if not isinstance(packet, btp.Response | btp.Error) or packet.request_id != request_id:
        return None
    if isinstance(packet, btp.Response):
        return AuthAnswer(read_offer(find_entry(packet.protocol_data, TRANSFER_KEYS)))
    name, data = packet.name.replace(token, "***"), packet.data.replace(token.encode(), b"***")
    refusal = remote_error(evolve(packet, name=name, data=data, protocol_data=()))
    if packet.code.startswith("T"):
        raise UnreachableError(f"the server cannot authenticate now: {refusal}") from refusal
    raise NotAcceptedError(f"the server refuses the credentials: {refusal}{advice}") from refusal
