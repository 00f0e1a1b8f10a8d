"""The program: all commands, and how their errors are reported."""

from __future__ import annotations

import io
import logging
import os
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

import click

from .bench import bench
from .conformance import conformance
from .decode import decode
from .demo import demo
from .errors import Exit, TerminatedError, advice, exit_code_of, one_line, unwrap_error
from .ildcp import ildcp
from .options import options
from .parameters import Group, epilog
from .pay import pay, quote
from .ping import ping
from .receive import receive
from .send_money import send_money
from .serve import serve
from .signals import raise_at_sigterm
from .store import store
from .transfers import transfers

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["run"]

PROGRAM = "trio-ledger-plugin"

EXAMPLES = """
  trio-ledger-plugin demo                     see all of it work
  trio-ledger-plugin serve                    a server for one client
  trio-ledger-plugin serve --accounts         a server for many clients, which forwards packets
  trio-ledger-plugin ping URL                 how fast does a peer answer?
  trio-ledger-plugin ildcp URL                which ILP address does a peer give me?
  trio-ledger-plugin options PLUGIN           which options does a plugin have?
  trio-ledger-plugin decode HEX               what is in this packet?
  trio-ledger-plugin transfers DB             which transfers were made, and which are in doubt?
  trio-ledger-plugin store check DB           is this store sound?
  trio-ledger-plugin send-money URL AMOUNT    send money to a peer
  trio-ledger-plugin pay POINTER --send N     pay a wallet
  trio-ledger-plugin quote POINTER --send N   what would a payment deliver?
  trio-ledger-plugin receive                  receive payments
  trio-ledger-plugin conformance PLUGIN       does a plugin do what the interface says?
  trio-ledger-plugin bench                    how many calls a second on this machine?
  trio-ledger-plugin COMMAND --help           more about one command
"""

COMPLETION = """\b
Completion by the tab key, for ~/.bashrc (with zsh_source for ~/.zshrc):
  eval "$(_TRIO_LEDGER_PLUGIN_COMPLETE=bash_source trio-ledger-plugin)"

"""


@click.group(
    cls=Group,
    invoke_without_command=True,
    epilog=COMPLETION + epilog(EXAMPLES, *Exit),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(version(PROGRAM), prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def root(context: click.Context) -> None:
    """Send packets and money to an Interledger peer, and look at what goes over the wire.

    An error is one line on stderr. Tokens are never shown, except the one that serve makes itself.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for _command in (
    demo,
    serve,
    ping,
    ildcp,
    decode,
    transfers,
    store,
    send_money,
    pay,
    quote,
    receive,
    options,
    conformance,
    bench,
):
    root.add_command(_command)


def run(args: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name, and return its exit code."""
    if sys.stdout is None:
        # Closed by whoever started the program. Commands may still do what they were started for.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A peer's text may hold characters that the terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    # Commands print what users need to know; logging would write it to stderr as well.
    logging.getLogger("trio_ledger_plugin").addHandler(logging.NullHandler())
    try:
        with raise_at_sigterm():
            return root.main(args, prog_name=PROGRAM, standalone_mode=False) or Exit.OK
    except (Exception, KeyboardInterrupt, TerminatedError, BaseExceptionGroup) as raised:  # noqa: BLE001 (never a traceback)
        error = unwrap_error(raised)
    if isinstance(error, BrokenPipeError):
        # The reader of the pipe has gone. Python would report an error when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    click.echo(f"error: {'; '.join(filter(None, (one_line(error), advice(error))))}", err=True)
    return exit_code_of(error)
