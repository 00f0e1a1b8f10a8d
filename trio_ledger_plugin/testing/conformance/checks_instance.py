"""Checks of how a plugin is made, of its services, and of its log."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from ...errors import (
    DataHandlerAlreadyRegisteredError,
    InvalidFieldsError,
    InvalidServicesError,
    LedgerPluginError,
    MoneyHandlerAlreadyRegisteredError,
    NotConnectedError,
    RemoteError,
)
from .assertions import Recorder, echo, expect, ignore, outcome_of, raising, refusing
from .harness import Check, Level, Listed, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CHECKS"]

_checks: Listed = Listed()
CHECKS: list[Check] = _checks.checks

CANARY = "canary-5d1f07"


@_checks("LedgerPlugin.version")
async def version_is_2(stage: Stage) -> None:
    """The class and its instances have version 2 of the interface."""
    async with stage.open(connect=False) as pair:
        expect(type(pair.plugin).version == 2, f"the class's version is {type(pair.plugin).version!r}, not 2")
        expect(pair.plugin.version == 2, f"the instance's version is {pair.plugin.version!r}, not 2")


@_checks("new LedgerPlugin", Level.SHOULD)
async def options_are_json(stage: Stage) -> None:
    """Options can come out of JSON, since they often come from the environment."""
    async with stage.open(connect=False) as pair:
        new, options = stage.need(pair.new, "new"), stage.need(pair.options, "options")
        expect(new(json.loads(json.dumps(options)), None) is not None, "options from JSON made no plugin")


@_checks("new LedgerPlugin")
async def opts_that_are_no_object_are_a_type_error(stage: Stage) -> None:
    """The constructor raises TypeError when ``opts`` is not an object."""
    async with stage.open(connect=False) as pair:
        new = stage.need(pair.new, "new")
        for opts in (None, 7, "opts", ["opts"]):
            with raising(TypeError, f"opts is {opts!r}"):
                new(opts, None)


@_checks("new LedgerPlugin")
async def services_that_are_no_object_are_a_type_error(stage: Stage) -> None:
    """The constructor raises TypeError when ``api`` is given and is not a services object."""
    async with stage.open(connect=False) as pair:
        new, options = stage.need(pair.new, "new"), stage.need(pair.options, "options")
        for services in (7, "services", ["services"]):
            with raising(TypeError, f"services is {services!r}"):
                new(options, services)


@_checks("new LedgerPlugin")
async def wrong_options_are_an_invalid_fields_error(stage: Stage) -> None:
    """The constructor raises InvalidFieldsError when ``opts`` holds something wrong."""
    async with stage.open(connect=False) as pair:
        new, options = stage.need(pair.new, "new"), stage.need(pair.options, "options")
        with raising(InvalidFieldsError, "max_handlers is -1"):
            new({**options, "max_handlers": -1}, None)


@_checks("new LedgerPlugin", Level.RULE)
async def every_wrong_option_is_named_at_once(stage: Stage) -> None:
    """The error of wrong options names all of them, not only the first."""
    async with stage.open(connect=False) as pair:
        new, options = stage.need(pair.new, "new"), stage.need(pair.options, "options")
        with raising(InvalidFieldsError, "two fields are wrong") as caught:
            new({**options, "max_handlers": -1, "response_timeout": "soon"}, None)
        for name in ("max_handlers", "response_timeout"):
            expect(name in str(caught[0]), f"{name} is wrong too, and the error does not name it: {caught[0]}")


@_checks("new LedgerPlugin", Level.RULE)
async def an_unknown_option_is_refused_with_the_nearest_one(stage: Stage) -> None:
    """The error of an option that does not exist names the one that was probably meant."""
    async with stage.open(connect=False) as pair:
        new, options = stage.need(pair.new, "new"), stage.need(pair.options, "options")
        with raising(InvalidFieldsError, "there is no respnse_timeout") as caught:
            new({**options, "respnse_timeout": 1}, None)
        expect("response_timeout" in str(caught[0]), f"response_timeout was meant; the error: {caught[0]}")


@_checks("PluginServices#store")
async def a_missing_service_is_an_invalid_services_error(stage: Stage) -> None:
    """The constructor raises InvalidServicesError when a required service is missing."""
    async with stage.open(connect=False) as pair:
        new, options = stage.need(pair.new, "new"), stage.need(pair.options, "options")
        if not pair.needs_store:
            # In every plugin, money at KEYED needs a store.
            options = {**options, "money": "keyed"}
        with raising(InvalidServicesError, "a required store is missing"):
            new(options, None)


@_checks("new LedgerPlugin", Level.SHOULD)
async def works_without_services(stage: Stage) -> None:
    """A plugin works without ``api``, though perhaps with less functionality."""
    async with stage.open(connect=False) as pair:
        new, options = stage.need(pair.new, "new"), stage.need(pair.options, "options")
        stage.need(None if pair.needs_store else new, "plugin that works without a store")
        outcome = await outcome_of(_make, partial(new, options, None))
        expect(not isinstance(outcome, Exception), f"it cannot be made without services: {outcome!r}")


async def _make(make: partial[object]) -> object:
    return make()


@_checks("new LedgerPlugin", Level.RULE)
async def a_new_plugin_has_done_nothing(stage: Stage) -> None:
    """A new plugin is not connected, has no events and has counted nothing."""
    async with stage.open(connect=False) as pair:
        statistics = pair.plugin.statistics()
        expect(not pair.plugin.is_connected(), "it is connected before connect()")
        expect(pair.plugin.events.statistics().current_buffer_used == 0, "it has events before connect()")
        expect(statistics.requests_sent == statistics.calls_in_flight == 0, "it has made calls before connect()")


@_checks("errors", Level.RULE)
async def errors_have_the_names_of_the_specification(stage: Stage) -> None:
    """Every error has ``name``, which is its name in RFC-0024."""
    async with stage.open(connect=False) as pair:
        plugin = pair.plugin
        plugin.register_data_handler(echo)
        plugin.register_money_handler(ignore)
        with raising(LedgerPluginError, "a second data handler") as data:
            plugin.register_data_handler(echo)
        with raising(LedgerPluginError, "a second money handler") as money:
            plugin.register_money_handler(ignore)
        with raising(LedgerPluginError, "send_data() before connect()") as unconnected:
            await plugin.send_data(b"")
        for caught, kind in (
            (data, DataHandlerAlreadyRegisteredError),
            (money, MoneyHandlerAlreadyRegisteredError),
            (unconnected, NotConnectedError),
        ):
            expect(caught[0].name == kind.__name__, f"the error's name is {caught[0].name!r}, not {kind.__name__!r}")


@_checks("statistics", Level.RULE)
async def statistics_count_requests_and_responses(stage: Stage) -> None:
    """``statistics()`` is a snapshot of what was done; later calls do not change it."""
    async with stage.open() as pair:
        pair.peer.register_data_handler(echo)
        before = pair.plugin.statistics()
        await pair.plugin.send_data(b"a")
        await pair.plugin.send_data(b"b")
        after = pair.plugin.statistics()
        sent, answered = (
            after.requests_sent - before.requests_sent,
            after.responses_received - before.responses_received,
        )
        expect((sent, answered) == (2, 2), f"2 requests were sent and answered; counted were {sent} and {answered}")


# The log.


@_checks("PluginServices#log")
async def log_messages_hold_no_credentials(stage: Stage) -> None:
    """No log message holds a token, nor does the ``repr`` of the plugin, its options or its errors."""
    log = Recorder()
    async with stage.open(log=log) as pair:
        stage.need(pair.secrets or None, "secrets")
        plugin, peer = pair.plugin, pair.peer
        peer.register_data_handler(echo)
        plugin.register_data_handler(refusing(OSError(CANARY)))
        shown = [repr(plugin), str(plugin), repr(plugin.options), plugin.address, repr(plugin.statistics())]
        outcomes = [await outcome_of(call, b"") for call in (plugin.send_data, peer.send_data)]
        await plugin.disconnect()
        outcomes.append(await outcome_of(plugin.send_data, b""))
        shown += [*map(repr, outcomes), *map(str, outcomes), *log.lines]
    for secret in pair.secrets:
        leaks = [text.replace(secret, "***") for text in shown if secret in text]
        expect(not leaks, f"a secret is shown: {leaks}")


@_checks("PluginServices#log", Level.RULE)
async def a_log_that_is_given_is_used(stage: Stage) -> None:
    """Errors are logged to the log in the services."""
    log = Recorder()
    async with stage.open(log=log) as pair:
        pair.plugin.register_data_handler(refusing(OSError(CANARY)))
        await outcome_of(pair.peer.send_data, b"")
    expect(any(CANARY in line for line in log.errors), "a handler's error is not in the log")


@_checks("PluginServices#log", Level.SHOULD)
async def without_a_log_there_is_a_default(stage: Stage) -> None:
    """A plugin without a log uses the standard library's logging."""
    with _logged() as lines:
        async with stage.open(silent=False) as pair:
            pair.plugin.register_data_handler(refusing(OSError(CANARY)))
            await outcome_of(pair.peer.send_data, b"")
    expect(any(CANARY in line for line in lines), "a handler's error is not in the standard library's log")


@contextmanager
def _logged() -> Iterator[list[str]]:
    """Collect the messages of the standard library's root logger during a block."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    root, keep = logging.getLogger(), Keep()
    root.addHandler(keep)
    try:
        yield lines
    finally:
        root.removeHandler(keep)


@_checks("errors", Level.RULE)
async def the_log_repeats_the_reference_that_the_peer_gets(stage: Stage) -> None:
    """In place of a handler's error text the peer gets a reference, which the log repeats."""
    log = Recorder()
    async with stage.open(log=log) as pair:
        pair.plugin.register_data_handler(refusing(OSError(CANARY)))
        with raising(RemoteError, "the handler raised") as caught:
            await pair.peer.send_data(b"")
        words = [word.strip('":,.{}') for word in caught[0].data.decode().split()]
        references = [word for word in words if len(word) >= 8 and any(character.isdigit() for character in word)]
        expect(references, f"the peer gets no reference: {caught[0]}")
        expect(
            any(reference in line for line in log.errors for reference in references),
            "the log does not repeat the reference that the peer gets",
        )
