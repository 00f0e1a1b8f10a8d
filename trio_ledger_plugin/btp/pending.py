"""A connection to a server before it is authenticated, and what the plugin decides about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import trio
from attrs import frozen

from ..errors import LedgerPluginError, NotAcceptedError, UnreachableError
from ..negotiation import PeerJournal
from .auth import AuthRequest, BadAuthError, auth_accepted, auth_refused, read_auth
from .link import Link

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from ..negotiation import JournalOffer
    from ..net.admission import PendingPeer
    from ..runtime.context import Context
    from ..websocket.interface import WebSocketTransport

    Identify: TypeAlias = Callable[[str | None, bytes, str], str]
    MakeOffer: TypeAlias = Callable[[str, JournalOffer | None], Awaitable[JournalOffer | None]]
    Verify: TypeAlias = Callable[[str, bytes], Awaitable[None]]

__all__ = ["Decisions", "PendingConnection"]


@frozen(eq=False)
class Decisions:
    """What a plugin decides about connections, and what it is called for.

    Attributes:
        make_offer: Returns what this end says about its journal to the account of a client that says something about
            its own; None if it offers only PLAIN. The client's messages are held meanwhile.
        make_room: Called with an account that a peer has authenticated for, before the peer is accepted. Raises
            ``UnreachableError`` if the account can have no further link now; the client tries again later.
        attach: Called with each link whose peer is authenticated; ``link.account`` is set.
        detach: Called with each link that is lost, attached or not, and the reason.
        is_wanted: Returns whether links are still wanted: False while the plugin disconnects or closes.
        identify: Returns the account that a username, a token and the URL's path ask for, or raises
            ``NotAcceptedError``. It does not wait.
        verify: Looks up the account's token. Raises ``NotAcceptedError`` if it is another one, ``StoreError`` if the
            store fails, and ``UnreachableError`` if no further account is accepted now. None if ``identify`` decides
            alone. The peer's messages are held meanwhile.
        delay: Called with an account that a peer has authenticated for; returns for how many seconds the connection
            has to wait before it is accepted. The peer's messages are held meanwhile.
    """

    make_offer: MakeOffer
    make_room: Callable[[str], None]
    attach: Callable[[Link], None]
    detach: Callable[[Link, str], None]
    is_wanted: Callable[[], bool]
    identify: Identify
    verify: Verify | None
    delay: Callable[[str], float]


class PendingConnection:
    """An unauthenticated connection, until it is attached or refused.

    Args:
        context: What the parts of the plugin share.
        ids: Where request ids come from.
        decisions: What the plugin decides.
        transport: The connection, its opening handshake done.
        pending: Its place among the unauthenticated connections.
    """

    __slots__ = (
        "_account",
        "_claim",
        "_decisions",
        "_delay",
        "_heard",
        "_max_entries",
        "_pending",
        "_request_id",
        "link",
        "refusal",
        "transport",
    )

    def __init__(
        self,
        context: Context,
        ids: Iterator[int],
        decisions: Decisions,
        transport: WebSocketTransport,
        pending: PendingPeer,
    ) -> None:
        self._decisions = decisions
        self._pending = pending
        self._request_id: int | None = None
        self._account = ""
        self._max_entries = context.options.max_entries
        # Set by the first packet or the loss of the link.
        self._heard = trio.Event()
        self._claim: tuple[AuthRequest, str] | None = None
        self._delay = 0.0
        self.refusal: BadAuthError | None = None
        self.transport: WebSocketTransport = transport
        self.link: Link = Link(context, ids, transport, self._lost)

    def receive(self, message: bytes) -> None:
        """Check the first packet, and hold what follows it while its token is looked up."""
        if self._heard.is_set():
            # Messages after a refused packet are ignored.
            if self._claim is not None:
                self.link.hold(message)
            return
        self._heard.set()
        self._pending.progress()
        try:
            request = read_auth(message, max_entries=self._max_entries)
        except BadAuthError as error:
            self.refusal = error
            return
        self._request_id, self._account = request.request_id, request.username or ""
        try:
            account = self._decisions.identify(request.username, request.token, self._pending.path)
        except NotAcceptedError as error:
            self._refuse(error)
            return
        if self._decisions.verify is None:
            self._delay = self._decisions.delay(account)
        if self._decisions.verify is None and request.offer is None and not self._delay:
            # At once: more messages may follow in the same read than can be held.
            self._accept(request, account, None)
        else:
            self._claim = request, account
            self._account = account
            self.link.await_verdict()

    async def settle(self) -> None:
        """Wait until the connection is attached, refused, or lost.

        Cancellation: The connection stays unauthenticated.
        """
        await self._heard.wait()
        if self._claim is None:
            return
        request, account = self._claim
        try:
            if self._decisions.verify is not None:
                await self._decisions.verify(account, request.token)
                self._delay = self._decisions.delay(account)
            if self._delay:
                await trio.sleep(self._delay)
            # Both ends have to offer it.
            offer = None if request.offer is None else await self._decisions.make_offer(account, request.offer)
        except LedgerPluginError as error:
            self._refuse(error)
        else:
            self._accept(request, account, offer)
        finally:
            self._claim = None

    def time_out(self, seconds: float) -> None:
        """Refuse the connection, unless it is settled already: the authentication took too long."""
        if self.link.is_open or self.link.is_lost or self.refusal is not None:
            return
        if self._heard.is_set():
            self._refuse(UnreachableError(f"the token could not be checked within {seconds:g} s"))
        else:
            self._heard.set()
            # There is no request to answer, and a silent peer gets no further second for a closing handshake.
            self.link.send_unauthenticated(auth_refused(0, f"no auth packet within {seconds:g} s"))
            self.link.abort("not authenticated")

    def _refuse(self, error: LedgerPluginError) -> None:
        # Only the token's own refusal is final: a store that fails, or an account without room, may be fine later.
        is_temporary = not isinstance(error, NotAcceptedError)
        self.refusal = BadAuthError(str(error), self._request_id, account=self._account, is_temporary=is_temporary)

    def _accept(self, request: AuthRequest, account: str, offer: JournalOffer | None) -> None:
        if not self.link.is_lost and self._decisions.is_wanted() and not self._pending.is_dropped:
            try:
                self._decisions.make_room(account)
            except UnreachableError as error:
                self._refuse(error)
                return
            # From here on, this connection does not have to make way for unauthenticated ones.
            self._pending.leave()
            # The link no longer calls this object, and so does not keep it in memory.
            self.link.on_lost = self._decisions.detach
            self.link.account = account
            self.link.is_downgraded = request.offer is not None and offer is None
            if request.offer is not None and offer is not None:
                self.link.peer_journal = PeerJournal.of(request.offer, offer)
            self.link.send_unauthenticated(auth_accepted(request.request_id, offer))
            self._decisions.attach(self.link)

    def _lost(self, link: Link, reason: str) -> None:
        self._heard.set()
        # As in _accept().
        link.on_lost = self._decisions.detach
        self._decisions.detach(link, reason)
