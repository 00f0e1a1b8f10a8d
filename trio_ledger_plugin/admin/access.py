"""Who may ask: judged by a request's head alone.

Invariants: a request that a web page of another site sends is refused, and so is one under a name that this server does
not have, which is how such a page would get around the first rule (DNS rebinding). Where a token is set, nothing that
says anything about a plugin is answered without it.
"""

from __future__ import annotations

from ipaddress import ip_address
from socket import gethostname
from typing import TYPE_CHECKING

from ..errors import NotAcceptedError
from ..http.credentials import PeerToken, bearer_token
from ..http.gate import RefusedError

if TYPE_CHECKING:
    from collections.abc import Collection

    from ..http.heads import PageHead
    from ..http.options import IncomingOptions

__all__ = ["Access"]

# What browsers say about a request that a page of another site has not sent.
OWN_SITE = ("", "same-origin", "none")


class Access:
    """Judges requests.

    Args:
        incoming: Where the server listens, and its token.
        names: Further host names under which browsers may ask for it.
    """

    def __init__(self, incoming: IncomingOptions, names: Collection[str]) -> None:
        self._names = {name.lower() for name in ("localhost", gethostname(), incoming.host or "localhost", *names)}
        self._token = PeerToken(incoming) if incoming.static_token else None

    @property
    def needs_token(self) -> bool:
        """Whether a token is set."""
        return self._token is not None

    def check_sender(self, head: PageHead) -> None:
        """Check that no page of another site has sent the request.

        Raises:
            RefusedError: One may have.
        """
        if not self._is_own(head.host):
            text = (
                f"this server has no such name; ask for it by its IP address, or give {_host_of(head.host)!r} as a name"
            )
            raise RefusedError(421, text)
        origin = None if head.origin is None else head.origin.partition("://")[2]
        if head.fetch_site not in OWN_SITE or origin not in (None, head.host):
            raise RefusedError(403, "a page of another site may not ask")

    def check_token(self, head: PageHead) -> None:
        """Check the token, if one is set.

        Raises:
            RefusedError: It is missing or wrong.
        """
        if self._token is None:
            return
        shown = head.authorization is not None
        try:
            self._token.check(bearer_token(head.authorization, allow_bare=False))
        except NotAcceptedError as error:
            raise RefusedError(401, str(error), (("WWW-Authenticate", "Bearer"),), is_failure=shown) from error

    def _is_own(self, host: str) -> bool:
        """Whether the header ``Host`` is an IP address, which no other site has as its name, or one of the names."""
        name = _host_of(host)
        try:
            ip_address(name)
        except ValueError:
            return name in self._names
        return True


def _host_of(location: str) -> str:
    """Return the host of ``host:port``, in lower case, an IPv6 address without its brackets; empty if it has none."""
    if location.startswith("["):
        host, closing, _ = location[1:].partition("]")
        return host.lower() if closing else ""
    return location.partition(":")[0].lower()
