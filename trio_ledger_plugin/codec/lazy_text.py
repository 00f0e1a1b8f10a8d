"""A packet's text that stays the bytes it came as until somebody reads it.

Python keeps all of a text at four bytes a character where one of them lies past U+FFFF, and takes still more while it
puts such a text together. Were each text built when its packet is decoded, a peer could have a decoder take seven times
what it sent, for a text that perhaps nobody reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from .oer import PIECE, read_utf8

__all__ = ["LazyText", "with_text"]


class LazyText:
    """The base of a packet with a text of its peer's; the text's field is filled when it is first read."""

    # The field's name and its bytes, which are known to be UTF-8; set only where the field itself is not.
    __slots__ = ("_kept",)

    # Hidden from type checkers, for whom every name would exist.
    if not TYPE_CHECKING:  # pragma: no branch  # tests are run, not checked for types

        def __getattr__(self, name: str) -> str:
            # Python comes here only for what is not set, which "_kept" may be as well.
            if name != "_kept" and name == getattr(self, "_kept", ("",))[0]:
                text = read_utf8(self._kept[1], name)
                object.__setattr__(self, name, text)
                return text
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


_Packet = TypeVar("_Packet", bound=LazyText)


def with_text(packet: _Packet, field: str, text: bytes) -> _Packet:
    """Return a packet that was just made, and that nobody else has yet, with the text of one field.

    Args:
        packet: The packet, frozen for all but this.
        field: The field's name.
        text: The field's bytes, known to be UTF-8.
    """
    if len(text) <= PIECE or text.isascii():
        object.__setattr__(packet, field, text.decode())
    else:
        object.__delattr__(packet, field)
        object.__setattr__(packet, "_kept", (field, text))
    return packet
