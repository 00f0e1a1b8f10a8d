"""The options of the ``btp-accounts`` plugin."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

from ..checking import NAME, PORT, RULE, SSL_CONTEXT, WORD, CheckedOptions, Rule
from ..codec import ilp
from ..options import LinkOptions

if TYPE_CHECKING:
    import ssl

__all__ = ["AccountsOptions", "HostInfo"]

# An origin as browsers send it; whatever else stands in allowed_origins is a regular expression.
PLAIN_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+-]*://[A-Za-z0-9.:_-]+|null")


def _are_origins(value: object) -> bool:
    if not isinstance(value, list | tuple):
        return False
    try:
        return all(isinstance(item, str) and item != "" and re.compile(item) for item in value)
    except re.error:
        return False


def _as_tuple(value: Any) -> Any:  # noqa: ANN401 (whatever it is, the field's rule judges it)
    return tuple(value) if isinstance(value, list) else value


def _is_scale(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


@frozen
class HostInfo(CheckedOptions):
    """What the server's accounts are told of it (RFC-0031).

    Attributes:
        client_address: The server's own ILP address; its accounts' addresses lie below it.
        asset_scale: How many decimal places the unit of amounts lies below the asset's own unit, 0 to 255.
        asset_code: The asset, such as ``"XRP"``.

    Raises:
        InvalidFieldsError: Any field is wrong; every bad one is named.
    """

    client_address: str = field(
        metadata={
            RULE: Rule(
                "an ILP address, such as example.parent", lambda value: isinstance(value, str) and ilp.is_address(value)
            )
        }
    )
    asset_scale: int = field(metadata={RULE: Rule("a whole number from 0 to 255", _is_scale)})
    asset_code: str = field(metadata=NAME)


@frozen(kw_only=True)
class AccountsOptions(LinkOptions):
    """Options of the ``btp-accounts`` plugin, a server for many accounts; the fields of ilp-plugin-mini-accounts.

    Attributes:
        port: The TCP port; 0 takes a free one, which ``plugin.address`` tells. None opens none: connections are
            handed over with ``serve_stream()`` and ``serve_websocket()`` only.
        host: The address to listen on.
        allowed_origins: The web pages whose scripts may connect, by the ``Origin`` header that browsers send:
            an origin such as ``https://wallet.example``, or a regular expression that the whole of it must match.
            Without it a browser is refused.
        generate_account: True: an account's name is the hash of its token. False: it is the username that the
            client gives; needs a store. None: the username where one is given and there is a store, else the hash.
        debug_host_ildcp_info: The server's ILP address and asset; when None, ``connect()`` asks the data handler,
            as a child asks its parent.
        ssl_context: A server's TLS context; None listens without TLS.

    Raises:
        InvalidFieldsError: Any field is wrong; every bad one is named.
    """

    port: int | None = field(default=3000, metadata=PORT)
    host: str = field(default="127.0.0.1", metadata=WORD)
    allowed_origins: tuple[str, ...] = field(
        default=(),
        converter=_as_tuple,
        metadata={RULE: Rule("a tuple of origins or regular expressions", _are_origins)},
    )
    generate_account: bool | None = field(
        default=None,
        metadata={RULE: Rule("True, False or None", lambda value: value is None or isinstance(value, bool))},
    )
    debug_host_ildcp_info: HostInfo | None = field(
        default=None,
        metadata={
            RULE: Rule("HostInfo or None", lambda value: value is None or isinstance(value, HostInfo), nested=HostInfo)
        },
    )
    ssl_context: ssl.SSLContext | None = field(default=None, metadata=SSL_CONTEXT)

    def allows(self, origin: str) -> bool:
        """Whether a page of this origin may connect."""
        return any(
            allowed == origin or (not PLAIN_ORIGIN.fullmatch(allowed) and re.fullmatch(allowed, origin) is not None)
            for allowed in self.allowed_origins
        )
