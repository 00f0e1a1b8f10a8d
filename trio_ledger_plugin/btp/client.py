"""The end that dials: it connects, authenticates, and dials again after each loss.

Invariant: before the first success, ``connect()`` raises an error that another try cannot fix. After it, only the
peer's own refusal of the credentials ends the plugin. Every other error is followed by another try, after a pause that
is at most as long as the outage so far and at most ``redial_max_delay``, or as long as an HTTP server asks for.
"""

from __future__ import annotations

import ssl
from math import inf
from random import uniform
from typing import TYPE_CHECKING

import trio

from ..errors import InvalidFieldsError, LedgerPluginError, UnreachableError
from ..negotiation import PeerJournal
from ..net.dial import dial
from ..net.tunnel import dial_through
from ..net.unreachable import PermanentlyUnreachableError, RetryLaterError
from ..websocket.connection import WebSocket, open_websocket
from .auth import auth_message, read_auth_answer, transfer_keys
from .link import Link

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from ..negotiation import JournalOffer
    from ..runtime.context import Context
    from .auth import AuthAnswer
    from .options import BtpOptions

__all__ = ["Client"]

# The longest that one try may take: a peer that accepts and stays silent must not use up the whole timeout.
TRY_SECONDS = 10.0
# The longest pause after an immediate redial has failed; the bound then grows with the outage.
FIRST_PAUSE = 0.1
# The number of closes without an answer after which the log warns that the token may be refused.
SILENT_CLOSES = 3
# The advice for a refused token with a percent sign.
PERCENT = (
    "; a % in the URL's account or token is sent as it stands there, as by ilp-plugin-btp: if the server knows other "
    "characters, give them as btp_account and btp_token"
)
# A link that is lost sooner does not end the outage: otherwise two clients that replace each other in one account would
# do so as fast as the network can.
STABLE_SECONDS = 10.0


class SilentCloseError(UnreachableError):
    """The server closed the connection before it answered the auth packet."""

    name: str = UnreachableError.name


class Client:
    """Keeps one link to a server.

    Args:
        context: What the parts of the plugin share.
        options: The plugin's options.
        ids: Where request ids come from.
        make_offer: Returns what this end says about its journal; None if it offers only PLAIN.
        attach: Called with each link once it is authenticated.
        detach: Called with each link that is lost, attached or not, and the reason.
        is_wanted: Returns whether a link is still wanted: False while the plugin disconnects or closes.
        on_failed_try: Called with the error of each try before the first link.
    """

    def __init__(
        self,
        context: Context,
        options: BtpOptions,
        ids: Iterator[int],
        *,
        make_offer: Callable[[], Awaitable[JournalOffer | None]],
        attach: Callable[[Link], None],
        detach: Callable[[Link, str], None],
        is_wanted: Callable[[], bool],
        on_failed_try: Callable[[Exception], None],
    ) -> None:
        self._context = context
        self._options = options
        self._ids = ids
        self._make_offer = make_offer
        self._attach = attach
        self._detach = detach
        self._is_wanted = is_wanted
        self._on_failed_try = on_failed_try
        # Both since the last link.
        self._failed_tries = 0
        self._silent_closes = 0
        self._trusting_system: ssl.SSLContext | None = None

    @property
    def address(self) -> str:
        """The server's URL without credentials."""
        return self._options.address

    async def run(self, connected: Callable[[], None]) -> None:
        """Connect, and stay connected until cancelled.

        Args:
            connected: Called once the first link is authenticated.

        Raises:
            LedgerPluginError: The first connection cannot be made, or a later one was clearly refused.

        Cancellation: Drops the link at once.
        """
        if not self._options.btp_token:
            at = "; the URL has its @ behind the host, which a '/', '?' or '#' ends" if "@" in self.address else ""
            raise InvalidFieldsError(
                "credentials are missing: put account and token into the server URL "
                f"(btp+wss://account:token@host/path) or into btp_account and btp_token{at}"
            )
        if self._options.is_escaped:
            self._context.log.warn(
                "the account or the token in the URL of %s is sent percent-encoded, as ilp-plugin-btp sends it; "
                "btp_account and btp_token are sent as they are",
                self.address,
            )
        gone = await self._first_link()
        connected()
        began = -inf
        while True:
            up = trio.current_time()
            await gone.wait()
            if not self._is_wanted():
                await trio.sleep_forever()
            now = trio.current_time()
            if began == -inf or now - up >= STABLE_SECONDS:
                began = now
            else:
                await self._pause(began)
            gone = await self._next_link(began)

    async def _first_link(self) -> trio.Event:
        began = trio.current_time()
        while True:
            try:
                return await self._try(redials=0)
            except PermanentlyUnreachableError:
                raise
            except UnreachableError as error:
                self._on_failed_try(error)
                failed = error
            await self._pause(began, failed)

    async def _next_link(self, began: float) -> trio.Event:
        while True:
            try:
                return await self._try(redials=1)
            except UnreachableError as error:
                failed = error
            await self._pause(began, failed)

    async def _pause(self, began: float, error: UnreachableError | None = None) -> None:
        """Wait with full jitter, at most as long as the outage so far: after a short outage, a redial follows soon."""
        if error is not None:
            self._log_failed_try(error)
        asked = error.pause if isinstance(error, RetryLaterError) else 0.0
        outage = max(trio.current_time() - began, FIRST_PAUSE)
        jitter = uniform(0, min(outage, self._options.redial_max_delay))  # noqa: S311 (jitter, no secret)
        await trio.sleep(asked + jitter)

    def _log_failed_try(self, error: UnreachableError) -> None:
        """Log a failed try, the first one of an outage for operators that only read warnings."""
        self._failed_tries += 1
        warns = self._failed_tries == 1 or (
            isinstance(error, SilentCloseError) and self._silent_closes == SILENT_CLOSES
        )
        # The error of a dial begins like the line.
        reason = str(error).removeprefix(f"cannot connect to {self.address}: ")
        if warns:
            self._context.log.warn("cannot connect to %s: %s; trying again", self.address, reason)
        else:
            self._context.log.info("cannot connect to %s, try %d: %s", self.address, self._failed_tries, reason)

    async def _try(self, *, redials: int) -> trio.Event:
        """Open and authenticate one link, add ``redials`` to the count, and return the event of the link's loss."""
        with trio.move_on_after(TRY_SECONDS):
            websocket = await self._open_websocket()
            return await self._authenticate(websocket, redials)
        raise UnreachableError(f"{self.address} did not answer within {TRY_SECONDS:g} s")

    async def _open_websocket(self) -> WebSocket:
        options = self._options
        stream = await self._dial()
        return await open_websocket(
            stream,
            self._context.tasks,
            options,
            host=options.host_header,
            resource=options.resource,
            headers=options.request_headers(),
        )

    async def _dial(self) -> trio.abc.Stream:
        options = self._options
        context = options.ssl_context
        if options.tls and context is None:
            context = await self._system_context()
        proxy = options.find_proxy()
        if proxy is None:
            return await dial(options.host, options.port, self.address, ssl_context=context)
        return await dial_through(
            proxy,
            options.host,
            options.port,
            self.address,
            ssl_context=context,
            proxy_context=await self._system_context() if proxy.tls else None,
            user_agent=options.user_agent,
            limit=options.max_head_bytes,
        )

    async def _system_context(self) -> ssl.SSLContext:
        """Return the context that trusts the system's authorities; it is made once, in a thread, from files."""
        if self._trusting_system is None:
            self._trusting_system = await trio.to_thread.run_sync(ssl.create_default_context)
        return self._trusting_system

    async def _authenticate(self, websocket: WebSocket, redials: int) -> trio.Event:
        options = self._options
        gone, decided = trio.Event(), trio.Event()
        decision: list[LedgerPluginError | None] = []
        request_id = next(self._ids)
        offered = await self._make_offer()
        flags = {**options.btp_auth_flags, **transfer_keys(offered)}

        def on_message(message: bytes) -> None:
            if decided.is_set():
                # A packet after a refusal must not open the link.
                return
            try:
                answer = read_auth_answer(
                    message,
                    request_id,
                    max_entries=options.max_entries,
                    token=options.btp_token.reveal(),
                    advice=PERCENT if options.has_percent else "",
                )
            except LedgerPluginError as error:
                decision.append(error)
            else:
                if answer is None:
                    link.hold(message)
                    return
                decision.append(None)
                self._context.counters.redials += redials
                self._accepted(link, offered, answer)
            decided.set()

        ended = ""

        def on_lost(lost: Link, reason: str) -> None:
            nonlocal ended
            ended = reason
            gone.set()
            decided.set()
            self._detach(lost, reason)

        link = Link(self._context, self._ids, websocket, on_lost)
        done = False
        try:
            link.begin(on_message)
            link.send_unauthenticated(auth_message(request_id, options.btp_account, options.btp_token.reveal(), flags))
            await decided.wait()
            done = True
        finally:
            # Also if the link has opened at the very moment of the timeout: its caller is gone.
            if not (done and link.is_open):
                link.abort("not authenticated")
        if not decision:
            self._silent_closes += 1
            raise SilentCloseError(
                f"no answer to the credentials, {self._silent_closes} times so far ({ended}); "
                "the server may refuse the token, or have trouble of its own"
            )
        if decision[0] is not None:
            raise decision[0]
        return gone

    def _accepted(self, link: Link, offered: JournalOffer | None, answer: AuthAnswer) -> None:
        """Use a link whose credentials the server has accepted."""
        self._failed_tries = self._silent_closes = 0
        # The server cannot agree to what this end has not offered.
        link.is_downgraded = offered is None
        if offered is not None and answer.offer is not None:
            link.peer_journal = PeerJournal.of(answer.offer, offered)
        self._attach(link)
