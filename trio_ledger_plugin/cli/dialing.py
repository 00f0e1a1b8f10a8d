"""Connects the commands that dial a server, which the command line or the environment names."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import click

from ..errors import NotAcceptedError, UnreachableError
from ..opening import open_plugin
from ..options.base import ConnectOptions
from .errors import exit_code_of, one_line
from .parameters import SERVERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from ..options.base import PluginOptions
    from ..plugin import LedgerPlugin
    from ..services import PluginServices

__all__ = ["open_client"]


@asynccontextmanager
async def open_client(
    options: PluginOptions, seconds: float, services: PluginServices | None = None, *, lacking: str
) -> AsyncIterator[LedgerPlugin]:
    """Open a plugin that dials. If it dials the default server, which nobody named, an error says so.

    Args:
        options: The plugin's options.
        seconds: The time for connecting.
        services: The plugin's services.
        lacking: What the command line could name the server with and does not, such as ``"--server"``; empty if it
            names the server.

    Raises:
        click.ClickException: The default server cannot be reached, or refuses the random token.
        LedgerPluginError: As ``open_plugin`` documents.

    Cancellation: The plugin is closed at once.
    """
    named = not lacking or any(os.environ.get(name) for name in SERVERS)
    async with AsyncExitStack() as stack:
        with nullcontext() if named else _explaining_default(lacking):
            plugin = await stack.enter_async_context(
                open_plugin(options, services, connect=ConnectOptions(seconds=seconds))
            )
        yield plugin


@contextmanager
def _explaining_default(lacking: str) -> Iterator[None]:
    try:
        yield
    except (UnreachableError, NotAcceptedError) as error:
        unset = " nor ".join((lacking, *SERVERS))
        explained = click.ClickException(f"{one_line(error)}; the default was tried, since neither {unset} is set")
        explained.exit_code = exit_code_of(error)  # type: ignore[misc]  # Click reads it from the instance
        raise explained from error
