"""The options of ``serve --accounts``."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import click
from attrs import frozen

from ..btp.options import AccountsOptions, HostInfo
from ..errors import InvalidFieldsError
from ..stores import MemoryStore
from .errors import describe_problems
from .parameters import Seconds
from .replies import ADDRESS
from .serving import CLOSE_SECONDS

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from ..services import Store

__all__ = ["AccountChoices", "accounts_choices", "make_accounts_options"]

_Decorated = TypeVar("_Decorated", bound="Callable[..., object]")


def _checked_origins(_: click.Context, __: click.Parameter, origins: tuple[str, ...]) -> tuple[str, ...]:
    try:
        AccountsOptions(allowed_origins=origins)
    except InvalidFieldsError as error:
        raise click.BadParameter("it is an origin such as https://wallet.example, or a regular expression") from error
    return origins


CHOICES = (
    click.option("--accounts", is_flag=True, help="Serve many clients, and forward packets between their accounts."),
    click.option(
        "--address", default=ADDRESS, show_default=True, help="The server's ILP address; accounts are below it."
    ),
    click.option(
        "--asset-scale", type=click.IntRange(0, 255), default=9, show_default=True, help="The accounts' scale."
    ),
    click.option("--asset-code", default="XRP", show_default=True, help="The accounts' asset."),
    click.option(
        "--names",
        type=click.Choice(["token", "username"]),
        default="token",
        show_default=True,
        help="What names an account: the hash of its token; or the username, which belongs to the first token that "
        "comes with it, until the server ends unless there is a --store.",
    ),
    click.option(
        "--allow-origin",
        multiple=True,
        callback=_checked_origins,
        help="The origin of a web page that may connect, or a regular expression; may be given again.",
    ),
    click.option(
        "--totals",
        type=Seconds(),
        default=10.0,
        show_default=True,
        help="Seconds between lines of totals, off a terminal.",
    ),
)


@frozen(kw_only=True)
class AccountChoices:
    """The values of the options above, but for ``--accounts`` itself."""

    address: str
    asset_scale: int
    asset_code: str
    names: str
    allow_origin: tuple[str, ...]
    totals: float
    as_json: bool

    @property
    def forgetful_store(self) -> Store | None:
        """Where the accounts' tokens are kept until the server ends, if they have to be."""
        return MemoryStore() if self.names == "username" else None


def accounts_choices(command: _Decorated) -> _Decorated:
    """Give a command the options above."""
    for option in reversed(CHOICES):
        command = option(command)
    return command


def make_accounts_options(
    choices: AccountChoices, host: str, port: int, ssl_context: ssl.SSLContext | None
) -> AccountsOptions:
    """Return the server's options.

    Raises:
        click.UsageError: One is wrong; in the words of the command line.
    """
    try:
        info = HostInfo(client_address=choices.address, asset_scale=choices.asset_scale, asset_code=choices.asset_code)
        return AccountsOptions(
            port=port,
            host=host,
            ssl_context=ssl_context,
            allowed_origins=choices.allow_origin,
            generate_account=choices.names == "token",
            debug_host_ildcp_info=info,
            close_timeout=CLOSE_SECONDS,
        )
    except InvalidFieldsError as error:
        subjects = {"client_address": "--address:", "asset_code": "--asset-code:", "host": "--host:"}
        raise click.UsageError(describe_problems(error, subjects)) from error
