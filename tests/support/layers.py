"""The layers of the package, lowest first: what the layer test enforces, and what the drawing shows."""

from __future__ import annotations

import trio_ledger_plugin

__all__ = ["LAYERS", "PACKAGE", "WORDS"]

PACKAGE = trio_ledger_plugin.__name__

VALUES = {
    "errors",
    "events",
    "log",
    "negotiation",
    "parking",
    "protocol_data",
    "request",
    "secret",
    "services",
    "statistics",
    "transfer",
}
CORE = VALUES | {"appearance", "options", "stores", "runtime", "money", "plugin", "exchange", "registration"}
SHIPPED = CORE | {
    "codec",
    "net",
    "websocket",
    "ilp",
    "accounts",
    "btp",
    "http",
    "loopback",
    "registry",
    "environment",
    "event_text",
    "opening",
    PACKAGE,
}
# Lowest first: the files and folders of a layer, and what they may import besides their own folder.
LAYERS: tuple[tuple[tuple[str, ...], set[str]], ...] = (
    (tuple(sorted(VALUES)), VALUES),
    (("codec", "options", "stores"), VALUES),
    (("runtime",), VALUES | {"options"}),
    (("money",), VALUES | {"options", "stores", "runtime"}),
    (("plugin", "exchange", "registration", "appearance"), CORE),
    (("net", "websocket"), VALUES | {"options", "runtime", "net"}),
    (("ilp",), VALUES | {"codec", "plugin"}),
    (("accounts",), CORE | {"codec", "net", "ilp"}),
    (("btp", "http", "loopback"), CORE | {"codec", "net", "websocket", "ilp", "accounts"}),
    (("registry", "environment", "event_text", "opening", PACKAGE), SHIPPED),
    (("admin",), SHIPPED),
    (
        ("stream", "telemetry", "testing", "pytest_plugin", "benchmark", "cli", "__main__"),
        SHIPPED | {"admin", "stream", "testing", "benchmark", "cli"},
    ),
)
# What each layer is, by its first file or folder.
WORDS = {
    "stream": "whole payments (STREAM); OpenTelemetry; the kit for tests of plugins, and its fixture; the benchmark;"
    " the command line",
    "admin": "a page for operators, health checks and metrics of plugins",
    "registry": "names to plugins; options from the environment; events as texts; open_plugin, create_plugin; the"
    " public names",
    "btp": "the plugins: btp, btp-accounts, http, http-accounts, loopback",
    "accounts": "a server of many accounts, for every protocol",
    "ilp": "what is above every plugin: asking for one's own address",
    "net": "sockets: URLs, admission, tokens; messages over a stream (RFC 6455)",
    "plugin": "LedgerPlugin, the interface of RFC-0024; ExchangePlugin, the short way to write a plugin",
    "money": "exactly-once transfers: sending again, crediting once, calling the money handler",
    "runtime": "a plugin's machinery: tasks, deadlines, calls, handlers; it knows no protocol",
    "codec": "bytes to packets and back; options that check themselves; where values are kept",
    "errors": "values: every exception, the events, counts, one transfer, one request, what two ends say about their"
    " journals; the one wait that is made by hand",
}
