"""Text in a packet that stays undecoded bytes until it is first read.

If a text contains a character above U+FFFF, Python stores all of it at four bytes a character, and needs still more
while it builds the text. If each text were decoded with its packet, a peer could make the decoder allocate seven times
the size of its packet, for a text that the application may never read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from .oer import PIECE, read_utf8

__all__ = ["LazyText", "with_text"]


class LazyText:
    """The base of packets with a text from the peer; the field is set when it is first read."""

    # The name of the undecoded field and its bytes, which are valid UTF-8; set only while the field is not.
    __slots__ = ("_undecoded",)

    # Hidden from type checkers: with a __getattr__, they would accept any attribute name.
    if not TYPE_CHECKING:  # pragma: no branch  # tests are run, not checked for types

        def __getattr__(self, name: str) -> str:
            # Python calls this only for attributes that are not set, and "_undecoded" may be one of them.
            if name != "_undecoded" and name == getattr(self, "_undecoded", ("",))[0]:
                text = read_utf8(self._undecoded[1], name)
                object.__setattr__(self, name, text)
                return text
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


_Packet = TypeVar("_Packet", bound=LazyText)


def with_text(packet: _Packet, field: str, text: bytes) -> _Packet:
    """Set a text field of a packet that was just created, and return the packet.

    Args:
        packet: The packet. It is a frozen value, so no other code may have a reference to it yet.
        field: The field's name.
        text: The field's bytes, which are valid UTF-8.
    """
    if len(text) <= PIECE or text.isascii():
        object.__setattr__(packet, field, text.decode())
    else:
        object.__delattr__(packet, field)
        object.__setattr__(packet, "_undecoded", (field, text))
    return packet
