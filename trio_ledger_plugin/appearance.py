"""How a plugin looks at a prompt and in a log: its ``repr()``, and the names that ``dir()`` lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from .runtime.connector import PluginState

__all__ = ["ListNames", "Show", "list_names", "show_plugin"]

# The types with which a class declares these functions as its methods.
Show: TypeAlias = Callable[[Any], str]
ListNames: TypeAlias = Callable[[Any], list[str]]

# What an application uses, of every plugin and of some. A plugin has more names, for its author and its own parts.
NAMES: Final = frozenset(
    {
        *("account", "account_name", "accounts", "aclose", "address", "asgi_app", "connect"),
        *("deregister_data_handler", "deregister_message_handler", "deregister_money_handler", "disconnect", "events"),
        *("is_connected", "options", "register_data_handler", "register_message_handler", "register_money_handler"),
        *("register_transactional_money_handler", "send_data", "send_money", "serve_stream", "serve_websocket"),
        *("services", "statistics", "transfers", "version", "wait_connected", "watch_events", "watch_requests"),
    }
)
OWN_PACKAGE: Final = __name__.partition(".")[0]


def show_plugin(plugin: Any) -> str:  # noqa: ANN401 (a LedgerPlugin, whose module imports this one)
    """Return the class, the name, the address and the state of a plugin; no secret.

    The name is that of the account, or what the options call the plugin.
    """
    kind = type(plugin).__name__
    try:
        given = (getattr(plugin.options, each, "") for each in ("btp_account", "name"))
        name = next((f" {each!r}" for each in (getattr(plugin, "account_name", ""), *given) if each), "")
        address = f" at {plugin.address}" if plugin.address else ""
        return f"<{kind}{name}{address}, {_state_of(plugin)}>"
    except AttributeError:
        # Its constructor has not ended.
        return f"<{kind}, not made yet>"


def _state_of(plugin: Any) -> str:  # noqa: ANN401 (the same)
    if plugin.is_connected():
        return "connected"
    state: PluginState = plugin._connector.state
    return "waiting for its peer" if state is PluginState.READY else state.value


def list_names(plugin: Any) -> list[str]:  # noqa: ANN401 (the same)
    """Return the names of a plugin that an application uses, and those that a class of another package adds."""
    added = {
        name for each in type(plugin).__mro__ if each.__module__.partition(".")[0] != OWN_PACKAGE for name in vars(each)
    }
    own = {name for name in NAMES if hasattr(type(plugin), name) or name in vars(plugin)}
    return sorted(own | {name for name in added - set(dir(object)) if not name.startswith("_")})
