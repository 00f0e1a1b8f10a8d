"""The handler of messages of other sub-protocols than ``ilp`` (RFC-0023, sub-protocols)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

from ..codec import btp
from ..errors import InvalidFieldsError
from ..protocol_data import ProtocolData

__all__ = ["OnMessage", "checked"]

OnMessage: TypeAlias = Callable[[str, tuple[ProtocolData, ...]], Awaitable[Iterable[ProtocolData]]]


def checked(
    on_message: OnMessage, max_bytes: int
) -> Callable[[str, tuple[ProtocolData, ...]], Awaitable[tuple[ProtocolData, ...]]]:
    """Return a function that calls the handler, and raises an error for entries that cannot be sent.

    Args:
        on_message: The application's handler.
        max_bytes: The most bytes that a message may have.
    """

    async def answer(account: str, protocol_data: tuple[ProtocolData, ...]) -> tuple[ProtocolData, ...]:
        entries = tuple(await on_message(account, protocol_data))
        try:
            size = len(btp.encode(btp.Response(0, entries)))
        except InvalidFieldsError as error:
            # Not as it is: the peer would read that its own fields are invalid.
            raise ValueError(f"the message handler's entries cannot be sent: {error}") from error
        if size > max_bytes:
            raise ValueError(f"the message handler's entries take {size} bytes; a message has at most {max_bytes}")
        return entries

    return answer
