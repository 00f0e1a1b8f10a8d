"""Text that must not appear in a log line, repr, exception, event or statistic."""

from __future__ import annotations

from hashlib import sha256
from hmac import compare_digest
from typing import NoReturn

__all__ = ["Secret", "shown_size"]


class Secret:
    """Text that only ``reveal()`` returns.

    ``repr``, ``str`` and formatting give ``Secret(***)``; pickling, copying and JSON encoding raise ``TypeError``. An
    empty secret is false. Comparing two secrets takes constant time. Secrets are not hashable.
    """

    # Not an attrs class: attrs.asdict() would recurse into it and expose the text.
    __slots__ = ("_value",)

    def __hash__(self) -> int:
        """Raise ``TypeError``: a hash would reveal something about the text."""
        raise TypeError("a Secret cannot be hashed")

    def __init__(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"a secret is text (str), not {type(value).__name__}")
        self._value = value

    def reveal(self) -> str:
        """Return the text itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return _equal(self._value, other._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is neither pickled nor copied: its text would leave it")


def shown_size(data: bytes) -> str:
    """Return the text that a ``repr`` shows instead of bytes that may be secret or long: their number."""
    return f"<{len(data)} bytes>"


def _equal(left: str, right: str) -> bool:
    # Digests, because the time of compare_digest() reveals the lengths of its arguments.
    return compare_digest(*(sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (left, right)))
