"""An account whose transfers are sent, as the parts that send them share it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..runtime.context import Context
    from .doubts import Doubts
    from .journal import Journal

__all__ = ["SendingAccount"]

T = TypeVar("T")


@frozen(eq=False)
class SendingAccount:
    """What the parts that send an account's transfers share.

    Attributes:
        name: The account's name; empty for a plugin with one peer.
        context: What the parts of the plugin share.
        journal: The journal.
        doubts: Gets the transfers that are in doubt.
    """

    name: str
    context: Context
    journal: Journal
    doubts: Doubts

    def run(self, work: Callable[..., T], *args: Any) -> Awaitable[T]:  # noqa: ANN401 (the work's own)
        """Run work in a transaction, in the account's turn; ``Journal.run`` documents it."""
        return self.journal.run(self.name, work, *args)
