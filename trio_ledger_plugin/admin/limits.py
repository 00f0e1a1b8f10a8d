"""What a plugin uses of what it may use, and which limits it has reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from ..plugin import LedgerPlugin
    from ..statistics import Statistics

__all__ = ["REACHED", "Budget", "budgets_of"]

# The statistic, the option that limits it, the one that limits it for a whole server, and what it counts.
BUDGETS: Final = (
    ("handlers_running", "max_handlers", "max_server_handlers", "running handlers"),
    ("handler_bytes", "max_handler_bytes", "max_server_handler_bytes", "bytes held by handlers"),
    ("backlog_bytes", "max_backlog_bytes", "max_server_backlog_bytes", "bytes waiting for a handler"),
    ("links", "", "max_links", "connections"),
    ("transfers_remembered", "max_ledger_keys", "max_ledger_keys", "transfers remembered in the journal"),
    ("accounts_remembered", "", "max_accounts", "accounts remembered in the journal"),
)

#: Statistics that only grow when a limit is reached, and what each says.
REACHED: Final = {
    "requests_refused": "requests refused: too many were waiting",
    "transfers_refused": "transfers refused: too many were remembered",
    "links_refused": "connections refused: the account or the server had too many",
    "links_replaced": "idle connections closed for newer ones of the same account",
    "unauthenticated_dropped": "unauthenticated connections closed for others",
    "malformed_packets": "messages that were not readable packets",
    "events_dropped": "events that the application did not read in time",
}


@frozen
class Budget:
    """One limited quantity.

    Attributes:
        name: The name of its statistic.
        text: What it counts.
        used: How much is used now.
        limit: How much may be used.
    """

    name: str
    text: str
    used: int
    limit: int


def budgets_of(plugin: LedgerPlugin, statistics: Statistics) -> list[Budget]:
    """Return the budgets of a plugin that have a limit."""
    found = []
    for name, own, of_server, text in BUDGETS:
        limit = getattr(plugin.options, of_server if plugin.has_accounts else own, None)
        is_of_journal = name.endswith("_remembered")
        if limit is not None and (plugin.money.keeps_journal or not is_of_journal):
            found.append(Budget(name, text, getattr(statistics, name), limit))
    return found
