"""A text that must not be seen: in no log line, repr, exception, event or statistic."""

from __future__ import annotations

from hashlib import sha256
from hmac import compare_digest
from typing import NoReturn

__all__ = ["Secret", "shown_size"]


class Secret:
    """Text that shows itself only to ``reveal()``.

    ``repr``, ``str`` and formatting give ``Secret(***)``; pickling, copying and JSON refuse. An empty secret is
    false. Two secrets are compared in constant time. Secrets are not hashable.
    """

    # No attrs class: attrs.asdict() would walk into it and bring the text out.
    __slots__ = ("_value",)

    def __hash__(self) -> int:
        """Refuse: a secret's hash would tell of its text."""
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
    """Return what a ``repr`` shows in place of bytes that may be secret or long: how many there are."""
    return f"<{len(data)} bytes>"


def _equal(left: str, right: str) -> bool:
    # Digests, because compare_digest() tells the lengths of what it compares.
    return compare_digest(*(sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (left, right)))
