"""Compares the peer's journal of each new link with what the journal knows.

Invariant: nothing is sent at KEYED over a link before its comparison is in the journal. A link that another one has
replaced is no longer compared: the peer has told the later link something newer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ..errors import StoreError, copy_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from ..negotiation import PeerJournal
    from .outcomes import Outcomes
    from .sending_account import SendingAccount

__all__ = ["Comparing"]


class Comparing:
    """Compares the journals of one account's links.

    Args:
        account: The account.
        outcomes: Works on the journal until the store succeeds.
        peer: Returns the peer's journal as the present link knows it; None at PLAIN and without a link.
        resting: Returns a context in which no transfer is taken from the journal to be sent again.
        done: Called after a comparison, with whether transfers are in doubt because of it.
    """

    def __init__(
        self,
        account: SendingAccount,
        outcomes: Outcomes,
        *,
        peer: Callable[[], PeerJournal | None],
        resting: Callable[[], AbstractAsyncContextManager[None]],
        done: Callable[[bool], None],
    ) -> None:
        self._account = account
        self._outcomes = outcomes
        self._peer = peer
        self._resting = resting
        self._done = done
        self._trouble: StoreError | None = None
        self._tried = trio.Event()
        #: How many comparisons are not in the journal yet.
        self.running: int = 0
        #: Stands for the present link; set once its comparison is in the journal.
        self.link: trio.Event = trio.Event()

    @property
    def is_done(self) -> bool:
        """Whether the journal of the present link's peer was compared."""
        return self.link.is_set()

    def link_up(self, *, wanted: bool) -> None:
        """Handle a new link.

        Args:
            wanted: Whether it is to be compared.
        """
        self.link, self._trouble = trio.Event(), None
        self._tell_tried()
        peer = self._peer()
        if peer is not None and wanted:
            self._account.context.tasks.spawn(self._run, peer, self.link)

    async def wait(self) -> PeerJournal | None:
        """Return the peer's journal once it is compared; None at PLAIN and without a link.

        Raises:
            StoreError: The store failed; the comparison is tried again.

        Cancellation: Safe at any time.
        """
        while (peer := self._peer()) is not None and not self.is_done:
            link = self.link
            await self._tried.wait()
            if link is self.link and not self.is_done and self._trouble is not None:
                raise copy_error(self._trouble)
        return peer

    async def _run(self, peer: PeerJournal, link: trio.Event) -> None:
        self.running += 1
        try:
            doubts = await self._outcomes.persist("compare the peer's journal", self._compare, peer, link)
        finally:
            self.running -= 1
        link.set()
        self._tell_tried()
        self._done(doubts > 0)

    async def _compare(self, peer: PeerJournal, link: trio.Event) -> int:
        """Compare once; return how many transfers are in doubt because of it."""
        # What was taken over an earlier link must not be sent over this one without the comparison.
        async with self._resting():
            if link is not self.link:
                return 0
            try:
                return await self._account.doubts.meet(self._account.journal, self._account.name, peer)
            except StoreError as error:
                if link is self.link:
                    self._trouble = error
                    self._tell_tried()
                raise

    def _tell_tried(self) -> None:
        self._tried.set()
        self._tried = trio.Event()
