"""Who may send which requests: what is judged by the head alone, for the plugin's own port and for an application's.

Invariant: nothing of a request's body is read before its credentials are accepted.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeAlias

import trio
from attrs import frozen

from ..errors import NotAcceptedError, StoreError, UnreachableError
from .credentials import bearer_token

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..errors import LedgerPluginError
    from .heads import RequestHead
    from .link import HttpLink
    from .options import IncomingOptions

    Identify: TypeAlias = Callable[[str, str | None], tuple[str, float]]
    Verify: TypeAlias = Callable[[str, bytes], Awaitable[None]]
    OpenLink: TypeAlias = Callable[[str], HttpLink | None]

__all__ = ["Claim", "Gate", "RefusedError"]

MEDIA_TYPES: Final = frozenset({"", "application/octet-stream", "application/ilp+octet-stream"})


class RefusedError(Exception):
    """A request is refused by its head.

    Attributes:
        status: The status.
        headers: Header lines of the response, as pairs.
        is_failure: Whether the credentials are wrong, so that the response is delayed.
        account: The account that wrong credentials are for; empty if they name none.
    """

    def __init__(
        self,
        status: int,
        text: str,
        headers: tuple[tuple[str, str], ...] = (),
        *,
        is_failure: bool = False,
        account: str = "",
    ) -> None:
        super().__init__(text)
        self.status: int = status
        self.headers: tuple[tuple[str, str], ...] = headers
        self.is_failure: bool = is_failure
        self.account: str = account


@frozen
class Claim:
    """The account that a request's credentials are for.

    Attributes:
        account: The account's name; empty for a plugin with one peer.
        token: The token.
        until: Until when the token is valid, in seconds since 1970.
        authorization: The header that has the token.
        peer_name: The header ``ILP-Peer-Name``.
    """

    account: str
    token: str
    until: float
    authorization: str | None
    peer_name: str | None

    def covers(self, head: RequestHead) -> bool:
        """Whether another request on the same connection shows the same, and it is still valid."""
        return (
            self.authorization == head.authorization
            and self.peer_name == head.peer_name
            and (self.until == float("inf") or time.time() < self.until)
        )


class Gate:
    """Judges requests by their heads.

    Args:
        incoming: What the peer must show, and where.
        limit: The most bytes of a body.
        seconds: How long the store may take to look up a token.
        identify: Returns the account that a token and a name are for, and until when the token is valid. Raises
            ``NotAcceptedError``. It does not wait.
        verify: Looks up the account's token. Raises ``NotAcceptedError`` if it is another one, ``StoreError`` if the
            store fails, and ``UnreachableError`` if no further account is accepted now. None if ``identify`` decides
            alone.
        open_link: Returns the link of an account; None while the plugin disconnects. Raises ``UnreachableError`` if
            the account has no room now.
    """

    def __init__(
        self,
        incoming: IncomingOptions,
        *,
        limit: int,
        seconds: float,
        identify: Identify,
        verify: Verify | None,
        open_link: OpenLink,
    ) -> None:
        self._path = incoming.path
        self._allow_bare = incoming.allow_bare_token
        self.limit: int = limit
        self._seconds = seconds
        self._identify = identify
        self.needs_store: bool = verify is not None
        self._verify = verify
        self._open_link = open_link

    def is_health_check(self, head: RequestHead) -> bool:
        """Whether a request only asks whether the server runs."""
        return head.method in (b"GET", b"HEAD")

    def check_target(self, head: RequestHead) -> None:
        """Check the path and the method.

        Raises:
            RefusedError: The request is refused.
        """
        if self._path is not None and head.path != self._path:
            raise RefusedError(404, "there is nothing at this path")
        if head.method != b"POST":
            raise RefusedError(405, "a packet is sent with POST", (("Allow", "POST, GET, HEAD"),))

    def claim(self, head: RequestHead) -> Claim:
        """Return what a request's head claims; ``verify`` must confirm it if the gate needs a store.

        Raises:
            RefusedError: The credentials are refused.
        """
        try:
            token = bearer_token(head.authorization, allow_bare=self._allow_bare)
            account, until = self._identify(token, head.peer_name)
        except NotAcceptedError as error:
            raise _unauthorized(error, head.peer_name or "") from error
        return Claim(account, token, until, head.authorization, head.peer_name)

    def check_body(self, head: RequestHead) -> None:
        """Check what a head says about the body.

        Raises:
            RefusedError: The request is refused.
        """
        if head.content_type not in MEDIA_TYPES or head.encoded:
            raise RefusedError(415, "the body must be application/octet-stream, not encoded")
        if head.length > self.limit:
            raise RefusedError(413, f"the body is longer than {self.limit} bytes")

    async def verify(self, claim: Claim) -> None:
        """Confirm a claim.

        Raises:
            RefusedError: The account has another token, the store fails or takes too long, or no further account is
                accepted now.

        Cancellation: A new account may have been stored.
        """
        assert self._verify is not None
        trouble: LedgerPluginError | None = None
        with trio.move_on_after(self._seconds):
            try:
                await self._verify(claim.account, claim.token.encode("utf-8", "surrogatepass"))
            except NotAcceptedError as error:
                raise _unauthorized(error, claim.account) from error
            except (StoreError, UnreachableError) as error:
                trouble = error
            else:
                return
        raise RefusedError(503, "the token cannot be looked up now") from trouble

    def link_of(self, claim: Claim) -> HttpLink:
        """Return the link of a claim that is confirmed.

        Raises:
            RefusedError: The plugin disconnects, or the account has no room now.
        """
        try:
            link = self._open_link(claim.account)
        except UnreachableError as error:
            raise RefusedError(503, str(error)) from error
        if link is None:
            raise RefusedError(503, "closing")
        return link


def _unauthorized(error: NotAcceptedError, account: str) -> RefusedError:
    return RefusedError(401, str(error), (("WWW-Authenticate", "Bearer"),), is_failure=True, account=account)
