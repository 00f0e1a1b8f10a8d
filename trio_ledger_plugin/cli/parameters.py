"""Parameters that several commands share.

Invariant: an error never repeats the command line, which may hold a token.
"""

from __future__ import annotations

import math
import os
from contextlib import contextmanager
from datetime import UTC, datetime
from difflib import get_close_matches
from textwrap import dedent, indent
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..btp.options import BtpOptions
from ..environment import VARIABLES, read_variables
from ..errors import InvalidFieldsError
from ..http.options import HttpOptions, OutgoingOptions
from ..net.url import split_url
from ..options.load import camel_case
from ..registry import find_plugin, resolve_plugin
from ..transfer import MAX_AMOUNT, check_amount
from .errors import MEANINGS, SECRET_VARIABLE, Exit, describe_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ..options.base import PluginOptions

__all__ = [
    "SERVERS",
    "Amount",
    "Command",
    "Group",
    "Seconds",
    "Time",
    "address_of",
    "client_options",
    "environment_options",
    "epilog",
    "insecure_option",
    "json_option",
    "read_environment",
    "split_credentials",
]

CLOSE_SECONDS = 1.0
# The variables that can name a server.
SERVERS = VARIABLES[:2]
NO_TOKEN = f"the URL has no token, as in ACCOUNT:TOKEN@HOST, and {SECRET_VARIABLE} is not set"

NO_AMOUNT = f"the amount must be a positive whole number of smallest units, at most {MAX_AMOUNT}"

_Decorated = TypeVar("_Decorated", bound="Callable[..., object] | click.Command")

json_option: Callable[[_Decorated], _Decorated] = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."
)
insecure_option: Callable[[_Decorated], _Decorated] = click.option(
    "--allow-insecure", is_flag=True, help="Send the token without TLS to a host that is not this machine."
)


class Amount(click.IntRange):
    """An amount of money, in an account's smallest units."""

    name = "amount"

    def __init__(self) -> None:
        super().__init__(1, MAX_AMOUNT)

    def convert(
        self,
        value: Any,  # noqa: ANN401 (as click has it)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> int:
        """Return the number."""
        try:
            return int(check_amount(value))
        except InvalidFieldsError:
            self.fail(NO_AMOUNT, param, ctx)


class Seconds(click.FloatRange):
    """A finite number of seconds.

    Args:
        zero: Whether 0 is allowed.
    """

    name = "seconds"

    def __init__(self, *, zero: bool = False) -> None:
        super().__init__(min=0, min_open=not zero, max=86400)

    def convert(
        self,
        value: Any,  # noqa: ANN401 (as click has it)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Return the number. NaN passes click's check of the range, so it is refused here."""
        try:
            float(value)
        except ValueError:
            # Click would say "not a valid seconds".
            self.fail("it is a number of seconds, such as 10 or 0.5", param, ctx)
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail("NaN is not a number of seconds", param, ctx)
        return seconds


class Time(click.DateTime):
    """A time in ISO 8601, as the commands show it and as their JSON has it. Without an offset it is in UTC."""

    def convert(
        self,
        value: Any,  # noqa: ANN401 (as click has it)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> datetime:
        """Return the time."""
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            self.fail("it is a time such as 2026-11-29 or '2026-11-29 08:47:22', in UTC", param, ctx)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time


def environment_options(timeout: float) -> PluginOptions:
    """Return the options that ``ILP_PLUGIN``, ``ILP_CREDENTIALS`` and ``ILP_BTP_SERVER`` give.

    Args:
        timeout: Seconds for connecting, and for each answer.

    Raises:
        click.UsageError: None of them is set.
        InvalidFieldsError: They are wrong.
    """
    if not any(os.environ.get(name) for name in VARIABLES):
        raise click.UsageError(f"give a URL, or set one of {', '.join(VARIABLES)}")
    return read_environment({"connect_timeout": timeout, "response_timeout": timeout, "close_timeout": CLOSE_SECONDS})


def read_environment(replacing: Mapping[str, object]) -> PluginOptions:
    """Return the options that the environment gives, or those of a client of the default server.

    Args:
        replacing: Options that replace those of the environment.

    Raises:
        InvalidFieldsError: They are wrong. The text names the variable that they are in.
    """
    replaced = {*replacing, *map(camel_case, replacing)}
    options = read_variables(os.environ)
    with _naming_variable(options.name_is_in):
        find_plugin(str(options["plugin"]))
    with _naming_variable(options.rest_is_in):
        rest = {name: value for name, value in options.items() if name not in replaced}
        return resolve_plugin({**rest, **replacing})[1]


@contextmanager
def _naming_variable(name: str) -> Iterator[None]:
    try:
        yield
    except InvalidFieldsError as error:
        raise InvalidFieldsError(f"{name}: {describe_problems(error, {}) or error}") from error


def address_of(options: PluginOptions) -> str:
    """Return the URL of the server that options dial, without credentials; empty if they dial none."""
    try:
        return str(getattr(options, "address", ""))
    except AttributeError:
        return ""


def client_options(
    url: str, timeout: float, *, allow_insecure: bool, response_timeout: float | None = None
) -> BtpOptions | HttpOptions:
    """Return the options of a client that dials a URL from the command line.

    Args:
        url: A URL of BTP or of HTTP. If it has no token, the one in the environment variable is used.
        timeout: Seconds for connecting, and for each answer.
        allow_insecure: Whether the token may go without TLS to another machine.
        response_timeout: Seconds for each answer, if they are not ``timeout``.

    Raises:
        click.UsageError: The URL is wrong, or there is no token. The text names the command line's options.
    """
    if split_url(url)[0] in {"http", "https"}:
        return _http_options(url, timeout, response_timeout or timeout, allow_insecure=allow_insecure)
    token = "" if split_url(url)[1] else os.environ.get(SECRET_VARIABLE, "")
    try:
        options = BtpOptions(
            server=url,
            btp_token=token,
            allow_insecure=allow_insecure,
            response_timeout=response_timeout or timeout,
            connect_timeout=timeout,
            close_timeout=CLOSE_SECONDS,
        )
    except InvalidFieldsError as error:
        subjects = {"server": "the URL", "allow_insecure": "--allow-insecure:"}
        raise click.UsageError(f"{describe_problems(error, subjects)}{_split_advice(url)}") from error
    if not options.btp_token:
        raise click.UsageError(NO_TOKEN)
    return options


def _http_options(url: str, timeout: float, response_timeout: float, *, allow_insecure: bool) -> HttpOptions:
    name, token, address = split_credentials(url)
    token = token or os.environ.get(SECRET_VARIABLE, "")
    if not token:
        raise click.UsageError(NO_TOKEN)
    try:
        outgoing = OutgoingOptions(url=address, static_token=token, name=name or None)
        return HttpOptions(
            outgoing=outgoing,
            allow_insecure=allow_insecure,
            response_timeout=response_timeout,
            connect_timeout=timeout,
            close_timeout=CLOSE_SECONDS,
        )
    except InvalidFieldsError as error:
        subjects = {
            "url": "the URL",
            "name": "the URL's account",
            "static_token": "the token",
            "outgoing.allow_insecure": "--allow-insecure:",
        }
        raise click.UsageError(f"{describe_problems(error, subjects)}{_split_advice(url)}") from error


def _split_advice(url: str) -> str:
    """Return what to do about a token with characters that end the host of a URL; empty if there is none."""
    _, userinfo, _, rest = split_url(url)
    return f"; here the token can be in {SECRET_VARIABLE}" if "@" in rest and not userinfo else ""


def split_credentials(url: str) -> tuple[str, str, str]:
    """Return the account and the token of a URL, and the URL without them."""
    scheme, userinfo, location, rest = split_url(url)
    name, _, token = userinfo.partition(":")
    return name, token, f"{scheme}://{location}{rest}"


def epilog(examples: str, *codes: Exit) -> str:
    """Return the end of a command's help: examples, and the command's exit codes."""
    listed = "\n".join(f"  {code:<5}{MEANINGS[code]}" for code in codes)
    # The backspace keeps click from joining the lines of a paragraph.
    return f"\b\nExamples:\n{indent(dedent(examples).strip(), '  ')}\n\n\b\nExit codes:\n{listed}"


class Command(click.Command):
    """A command whose errors do not repeat arguments that it does not have."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments."""
        ctx.allow_extra_args = True
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            # Click takes an argument such as -1 for an option.
            if error.option_name[1:].isdigit() and any(isinstance(param.type, Amount) for param in self.params):
                ctx.fail(NO_AMOUNT)
            raise
        # During completion the line is not finished yet.
        if rest and not ctx.resilient_parsing:
            ctx.fail(f"{len(rest)} argument{'s' if len(rest) > 1 else ''} too many")
        return rest


class Group(click.Group):
    """The program, whose commands are ``Command`` objects."""

    command_class: type[click.Command] | None = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments of a group.

        Raises:
            click.UsageError: A group that does nothing by itself has no arguments. Click would have the whole help as
                the text of this error.
        """
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            ctx.fail(f"give a command: {' or '.join(sorted(self.commands))}")
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command.

        Raises:
            click.UsageError: There is no such command.
        """
        if args[0] not in self.commands and not ctx.resilient_parsing:
            near = get_close_matches(args[0], self.commands, n=1)
            commands = ", ".join(sorted(self.commands))
            ctx.fail(f"no such command; {f'did you mean {near[0]}?' if near else f'the commands are {commands}'}")
        return super().resolve_command(ctx, args)
