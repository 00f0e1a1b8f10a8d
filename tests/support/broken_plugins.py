"""For each check of the conformance suite a plugin that breaks its rule, and as little else as possible."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import copy_context
from functools import partial, wraps
from inspect import isawaitable
from math import inf
from typing import TYPE_CHECKING, Any

import trio
from attrs import evolve

from trio_ledger_plugin import (
    Connected,
    ConnectionLostError,
    ConnectOptions,
    Disconnected,
    InvalidFieldsError,
    InvalidServicesError,
    LedgerPluginError,
    NotAcceptedError,
    NotConnectedError,
    PluginClosedError,
    PluginFailedError,
    ResponseTimeoutError,
    Transfer,
    TransferInDoubtError,
    UnreachableError,
)
from trio_ledger_plugin.btp.plugin import BtpPlugin
from trio_ledger_plugin.events import EventStream
from trio_ledger_plugin.loopback import LoopbackPlugin
from trio_ledger_plugin.testing.conformance.assertions import Recorder
from trio_ledger_plugin.testing.conformance.builtin_pairs import btp_client, loopback
from trio_ledger_plugin.transfer import enter_transfer

if TYPE_CHECKING:
    from trio_ledger_plugin.testing.conformance import PairConfig, PairFactory, PluginPair

# By the name of the check.
BROKEN: dict[str, PairFactory] = {}


def breaks(*names: str) -> Callable[[Any], Any]:
    def note(plugin_class: Any) -> Any:
        factory = btp_client if issubclass(plugin_class, BtpPlugin) else loopback
        for name in names:
            assert name not in BROKEN
            BROKEN[name] = partial(factory, plugin_class=plugin_class)
        return plugin_class

    return note


def breaks_subject(*names: str) -> Callable[[Any], Any]:
    """Break what a factory tells: what a function makes of a right subject."""

    def note(change: Callable[[PairConfig, PluginPair], PluginPair]) -> Any:
        @asynccontextmanager
        async def factory(conditions):
            async with loopback(conditions) as subject:
                yield change(conditions, subject)

        for name in names:
            assert name not in BROKEN
            BROKEN[name] = factory
        return change

    return note


def wrapping(handler: Any, wrapper: Any) -> Any:
    """Wrap a handler, where it can be called."""
    return wraps(handler)(partial(wrapper, handler)) if callable(handler) else handler


# Making one.


@breaks("version_is_2")
class Version1(LoopbackPlugin):
    version = 1


@breaks_subject("options_are_json")
def with_bytes(conditions, subject):
    return evolve(subject, options={**subject.options, "ledger_id": b"main"})


@breaks_subject("opts_that_are_no_object_are_a_type_error")
def takes_any_opts(conditions, subject):
    return evolve(
        subject, new=lambda opts, services: conditions.new(opts if isinstance(opts, Mapping) else subject.options)
    )


@breaks_subject("services_that_are_no_object_are_a_type_error")
def ignores_services(conditions, subject):
    return evolve(subject, new=lambda opts, services: conditions.new(opts))


@breaks_subject(
    "wrong_options_are_an_invalid_fields_error",
    "an_unknown_option_is_refused_with_the_nearest_one",
    "a_missing_service_is_an_invalid_services_error",
)
def ignores_most_options(conditions, subject):
    return evolve(subject, new=lambda opts, services: conditions.new(subject.options))


@breaks_subject("every_wrong_option_is_named_at_once")
def names_one_option(conditions, subject):
    def new(opts, services):
        raise InvalidFieldsError("max_handlers is wrong")

    return evolve(subject, new=new)


@breaks_subject("works_without_services")
def demands_services(conditions, subject):
    def new(opts, services):
        raise InvalidServicesError("no services")

    return evolve(subject, new=new)


@breaks("a_new_plugin_has_done_nothing")
class AlwaysConnected(LoopbackPlugin):
    def is_connected(self):
        return True


@breaks("errors_have_the_names_of_the_specification")
class WrongName(LoopbackPlugin):
    def register_data_handler(self, handler):
        try:
            super().register_data_handler(handler)
        except LedgerPluginError as error:
            error.name = "Oops"
            raise


@breaks("statistics_count_requests_and_responses")
class CountsNothing(LoopbackPlugin):
    def statistics(self):
        return evolve(super().statistics(), requests_sent=0)


# Its log.


@breaks("log_messages_hold_no_credentials")
class LogsItsToken(BtpPlugin):
    async def run_connection(self, *, task_status):
        assert self.services.log is not None
        self.services.log.info("connecting with %s", self.options.btp_token.reveal())
        await super().run_connection(task_status=task_status)


@breaks("a_log_that_is_given_is_used")
class IgnoresItsLog(LoopbackPlugin):
    def __init__(self, options, services, *rest):
        super().__init__(options, evolve(services, log=None), *rest)


@breaks("without_a_log_there_is_a_default")
class LogsNowhere(LoopbackPlugin):
    def __init__(self, options, services, *rest):
        super().__init__(options, evolve(services, log=Recorder()), *rest)


@breaks("the_log_repeats_the_reference_that_the_peer_gets")
class TellsNoReference(LoopbackPlugin):
    def send_reply(self, number, reply):
        super().send_reply(number, NotAcceptedError("no") if isinstance(reply, LedgerPluginError) else reply)


# Connecting.


@breaks("connect_connects")
class NeverConnected(LoopbackPlugin):
    def is_connected(self):
        return False


@breaks("connecting_emits_one_connected", "clones_of_events_compete")
class TellsTwice(LoopbackPlugin):
    def link_up(self):
        super().link_up()
        self.publish(Connected())


@breaks("is_connected_before_connected_is_delivered")
class ConnectedLate(LoopbackPlugin):
    up_at = inf

    def link_up(self):
        self.up_at = trio.current_time()
        super().link_up()

    def is_connected(self):
        return super().is_connected() and trio.current_time() > self.up_at + 0.05


@breaks("connect_when_connected_does_nothing", "connecting_twice_at_once_is_one_attempt")
class TellsEachConnect(LoopbackPlugin):
    async def connect(self, options=None):
        await super().connect(options)
        self.publish(Connected())


@breaks("connect_is_allowed_again_after_disconnect")
class ClosesOnDisconnect(LoopbackPlugin):
    async def disconnect(self):
        await self.aclose()


@breaks("connect_options_of_another_type_are_a_type_error")
class IgnoresWrongConnectOptions(LoopbackPlugin):
    async def connect(self, options=None):
        await super().connect(options if isinstance(options, ConnectOptions) else None)


@breaks("connect_gives_up_after_its_timeout")
class GivesUpAtOnce(BtpPlugin):
    async def connect(self, options=None):
        await super().connect(options and ConnectOptions(timeout=1))


@breaks("a_falsy_timeout_is_the_plugins_default")
class TakesZeroForZero(BtpPlugin):
    async def connect(self, options=None):
        await super().connect(ConnectOptions(timeout=1) if options and options.timeout == 0 else options)


@breaks("an_infinite_timeout_never_gives_up")
class KnowsNoInfinity(BtpPlugin):
    async def connect(self, options=None):
        await super().connect(None if options and options.timeout == inf else options)


@breaks("each_caller_of_connect_has_its_own_timeout")
class OneTimeoutForAll(BtpPlugin):
    first = None

    async def connect(self, options=None):
        self.first = self.first or options
        await super().connect(self.first)


@breaks("missing_credentials_are_an_invalid_fields_error", "refused_credentials_are_a_not_accepted_error")
class AlwaysUnreachable(BtpPlugin):
    async def connect(self, options=None):
        try:
            await super().connect(options)
        except (InvalidFieldsError, NotAcceptedError) as error:
            raise UnreachableError(str(error)) from error


@breaks("wait_connected_waits_for_the_peer")
class NeverWaits(LoopbackPlugin):
    async def wait_connected(self):
        await trio.lowlevel.checkpoint()


@breaks("wait_connected_ends_when_the_plugin_is_closed")
class WaitsUntilClosed(LoopbackPlugin):
    async def wait_connected(self):
        try:
            await super().wait_connected()
        except PluginClosedError:
            return


# Disconnecting.


@breaks("disconnect_disconnects")
class NeverDisconnects(LoopbackPlugin):
    async def disconnect(self):
        await trio.lowlevel.checkpoint()


@breaks("disconnecting_emits_one_disconnected", "a_peer_that_leaves_is_told_once")
class TellsEachLossTwice(LoopbackPlugin):
    def link_down(self, reason):
        super().link_down(reason)
        self.publish(Disconnected(reason))


@breaks("a_connection_that_is_cut_is_told_once")
class TellsEachCutTwice(BtpPlugin):
    def link_down(self, reason):
        super().link_down(reason)
        self.publish(Disconnected(reason))


@breaks("disconnect_is_safe_twice")
class RefusesToDisconnect(LoopbackPlugin):
    async def disconnect(self):
        if not self.is_connected():
            raise NotConnectedError("not connected")
        await super().disconnect()


@breaks("is_not_connected_when_disconnected_is_delivered")
class DisconnectedLate(LoopbackPlugin):
    down_at = -inf

    def link_down(self, reason):
        self.down_at = trio.current_time()
        super().link_down(reason)

    def is_connected(self):
        return super().is_connected() or trio.current_time() < self.down_at + 0.05


@breaks("disconnecting_fails_calls_with_plugin_closed", "a_failure_fails_calls_in_flight")
class AlwaysLost(LoopbackPlugin):
    def fail_calls(self, make_error):
        super().fail_calls(lambda: ConnectionLostError("gone"))


@breaks("a_lost_connection_fails_calls_with_connection_lost")
class AlwaysClosed(LoopbackPlugin):
    def part(self):
        self.fail_calls(lambda: PluginClosedError("gone"))
        super().part()


@breaks("a_closed_plugin_refuses_calls")
class OnlyDisconnects(LoopbackPlugin):
    async def aclose(self):
        await self.disconnect()


@breaks("closing_waits_for_calls_in_flight")
class ClosesAtOnce(LoopbackPlugin):
    async def aclose(self):
        self.fail_calls(lambda: PluginClosedError("closed"))
        await super().aclose()


@breaks("closing_leaves_no_task")
class LeavesATask(LoopbackPlugin):
    def __init__(self, options, services, nursery, *rest):
        super().__init__(options, services, nursery, *rest)
        self.home = nursery

    def link_up(self):
        super().link_up()
        self.home.start_soon(trio.sleep_forever)


# Events.


@breaks("events_are_a_memory_channel")
class OtherEvents(LoopbackPlugin):
    def __init__(self, *args):
        super().__init__(*args)
        self.events = iter(())  # type: ignore[assignment]  # which is what is wrong with it


@breaks("unread_events_neither_block_nor_grow")
class KeepsAllEvents(LoopbackPlugin):
    def __init__(self, *args):
        super().__init__(*args)
        stream = self._connector.stream
        stream._sender, stream.receiver = trio.open_memory_channel(inf)
        stream._overflow = stream.receiver.clone()
        self.events = stream.receiver


class KeepsTheOldest(EventStream):
    def publish(self, event):
        try:
            self._sender.send_nowait(event)
        except trio.WouldBlock:
            self.dropped += 1


@breaks("the_newest_events_are_kept", "dropped_events_are_counted", "failed_is_never_dropped")
class DropsTheNewestEvents(LoopbackPlugin):
    def __init__(self, *args):
        super().__init__(*args)
        self._connector.stream = KeepsTheOldest()
        self.events = self._connector.stream.receiver


def _ignore_link_down(plugin, ignored):
    link_down = plugin._connector.link_down
    vars(plugin._connector)["link_down"] = lambda reason: None if reason == ignored else link_down(reason)


@breaks("events_end_after_closing")
class ClosesWithoutAnEvent(LoopbackPlugin):
    def __init__(self, *args):
        super().__init__(*args)
        _ignore_link_down(self, "closed")


@breaks("failed_is_the_last_event")
class TellsAnotherError(LoopbackPlugin):
    def fail(self, error):
        super().fail(ValueError("another"))


@breaks("a_failed_plugin_is_disconnected")
class StaysConnected(LoopbackPlugin):
    def __init__(self, *args):
        super().__init__(*args)
        _ignore_link_down(self, "failed")


@breaks("a_failed_plugin_refuses_calls")
class ClosesOnFailure(LoopbackPlugin):
    def fail(self, error):
        self._connector.close()


@breaks("closed_and_failed_are_different")
class FailsWhenClosed(LoopbackPlugin):
    def fail(self, error):
        super().fail(error)
        self._connector._failure = self._connector._failure or PluginFailedError("failed")


# Requests.


@breaks("send_data_returns_the_response")
class ReturnsNothing(LoopbackPlugin):
    async def send_data(self, data):
        await super().send_data(data)
        return b""


@breaks("a_data_handler_answers_the_peers_requests")
class AnswersNothing(LoopbackPlugin):
    def send_reply(self, number, reply):
        super().send_reply(number, b"" if isinstance(reply, bytes) else reply)


@breaks("data_are_opaque")
class StripsData(LoopbackPlugin):
    async def send_data(self, data):
        return (await super().send_data(data)).strip(b"\0")


@breaks("send_data_takes_bytes_like_objects")
class TakesBytesOnly(LoopbackPlugin):
    async def send_data(self, data):
        if not isinstance(data, bytes):
            raise TypeError("bytes only")
        return await super().send_data(data)


@breaks("send_data_of_another_type_is_a_type_error")
class TakesAnything(LoopbackPlugin):
    async def send_data(self, data):
        return await super().send_data(data if isinstance(data, bytes) else str(data).encode())


@breaks("data_that_are_too_long_are_an_invalid_fields_error")
class CutsData(LoopbackPlugin):
    async def send_data(self, data):
        return await super().send_data(data[: self.options.max_data_bytes])


@breaks("send_data_before_connect_is_not_connected")
class AnswersWhenAlone(LoopbackPlugin):
    async def send_data(self, data):
        return await super().send_data(data) if self.is_connected() else b""


@breaks("responses_belong_to_their_requests")
class AnswersOneLate(LoopbackPlugin):
    last = b""

    async def send_data(self, data):
        response = await super().send_data(data)
        self.last, response = response, self.last
        return response


@breaks("a_cancelled_caller_leaves_the_connection_whole")
class TornByCancellation(LoopbackPlugin):
    async def send_data(self, data):
        try:
            return await super().send_data(data)
        except trio.Cancelled:
            self.link_down("torn")
            raise


@breaks("no_answer_is_a_response_timeout")
class LosesTheConnectionInstead(LoopbackPlugin):
    async def send_data(self, data):
        try:
            return await super().send_data(data)
        except ResponseTimeoutError as error:
            raise ConnectionLostError("no answer") from error


@breaks("a_data_handler_that_takes_too_long_is_answered_for")
class AnswersInItsPlace(LoopbackPlugin):
    def send_reply(self, number, reply):
        super().send_reply(number, b"" if "too long" in str(reply) else reply)


@breaks("handlers_may_call_each_other")
class OneHandlerAtATime(LoopbackPlugin):
    def __init__(self, options, *rest):
        super().__init__(evolve(options, max_handlers=1, max_backlog_bytes=1), *rest)


@breaks(
    "without_a_data_handler_the_peer_gets_an_error",
    "a_data_handler_may_raise",
    "a_handlers_rubbish_is_an_error_at_the_peer",
    "an_error_with_a_code_travels_under_it",
    "without_a_money_handler_the_peer_gets_an_error",
    "a_money_handler_may_refuse",
)
class SwallowsErrors(LoopbackPlugin):
    def send_reply(self, number, reply):
        super().send_reply(number, b"" if isinstance(reply, LedgerPluginError) else reply)


@breaks("the_peer_never_reads_internal_error_text")
class TellsAll(LoopbackPlugin):
    def register_data_handler(self, handler):
        async def tell_all(handler, data):
            try:
                return await handler(data)
            except Exception as error:
                raise NotAcceptedError(str(error)) from error

        super().register_data_handler(wrapping(handler, tell_all))


@breaks("a_plain_function_is_no_data_handler")
class TakesPlainFunctions(LoopbackPlugin):
    def register_data_handler(self, handler):
        async def call(handler, data):
            result = handler(data)
            return await result if isawaitable(result) else result

        super().register_data_handler(wrapping(handler, call))


@breaks("a_running_handler_survives_the_connection", "a_deregistered_data_handler_finishes")
class CancelsHandlers(LoopbackPlugin):
    def __init__(self, *args):
        super().__init__(*args)
        self.scope = trio.CancelScope()

    def register_data_handler(self, handler):
        async def cancellable(handler, data):
            with self.scope:
                return await handler(data)

        super().register_data_handler(wrapping(handler, cancellable))

    def deregister_data_handler(self):
        self.scope.cancel()
        super().deregister_data_handler()

    def link_down(self, reason):
        self.scope.cancel()
        super().link_down(reason)


@breaks("each_handler_runs_in_a_fresh_context")
class KeepsTheContext(LoopbackPlugin):
    def register_data_handler(self, handler):
        kept: dict[Any, Any] = {}

        async def call(handler, data):
            for variable, value in kept.items():
                variable.set(value)
            response = await handler(data)
            kept.update(copy_context().items())
            return response

        super().register_data_handler(wrapping(handler, call))


# Registering handlers.


@breaks("a_second_data_handler_is_refused", "a_second_money_handler_is_refused")
class ReplacesHandlers(LoopbackPlugin):
    def register_data_handler(self, handler):
        self.deregister_data_handler()
        super().register_data_handler(handler)

    def register_money_handler(self, handler):
        self.deregister_money_handler()
        super().register_money_handler(handler)


@breaks("a_data_handler_that_cannot_be_called_is_a_type_error", "a_money_handler_that_cannot_be_called_is_a_type_error")
class IgnoresWrongHandlers(LoopbackPlugin):
    def register_data_handler(self, handler):
        if callable(handler):
            super().register_data_handler(handler)

    def register_money_handler(self, handler):
        if callable(handler):
            super().register_money_handler(handler)


@breaks("data_handlers_may_be_registered_before_connect")
class ForgetsHandlersOnConnect(LoopbackPlugin):
    async def connect(self, options=None):
        self.deregister_data_handler()
        await super().connect(options)


@breaks(
    "a_deregistered_data_handler_is_gone",
    "a_data_handler_can_be_replaced",
    "a_deregistered_money_handler_is_gone",
    "a_money_handler_can_be_replaced",
)
class KeepsHandlers(LoopbackPlugin):
    def deregister_data_handler(self):
        pass

    def deregister_money_handler(self):
        pass


@breaks("deregistering_no_data_handler_does_nothing", "deregistering_no_money_handler_does_nothing")
class MissesHandlers(LoopbackPlugin):
    def deregister_data_handler(self):
        if not self.handlers.serves_data:
            raise LedgerPluginError("there is none")
        super().deregister_data_handler()

    def deregister_money_handler(self):
        if not self.handlers.serves_money:
            raise LedgerPluginError("there is none")
        super().deregister_money_handler()


# Money.


@breaks("send_money_reaches_the_peers_handler")
class ReturnsAReceipt(LoopbackPlugin):
    async def send_money(self, amount, *, idempotency_key=None):
        await super().send_money(amount, idempotency_key=idempotency_key)
        return b"receipt"


@breaks("a_money_handler_gets_the_peers_money")
class MultipliesMoney(LoopbackPlugin):
    def register_money_handler(self, handler):
        async def multiply(handler, amount):
            await handler(f"{amount}0")

        super().register_money_handler(wrapping(handler, multiply))


@breaks("the_journals_of_both_ends_agree")
class PaysTwice(LoopbackPlugin):
    async def send_money(self, amount, *, idempotency_key=None):
        await super().send_money(amount)
        await super().send_money(amount)


@breaks("every_amount_up_to_the_maximum_is_sent")
class CountsInFloats(LoopbackPlugin):
    async def send_money(self, amount, *, idempotency_key=None):
        await super().send_money(int(float(amount)), idempotency_key=idempotency_key)


@breaks("an_amount_out_of_range_is_an_invalid_fields_error")
class IgnoresWrongAmounts(LoopbackPlugin):
    async def send_money(self, amount, *, idempotency_key=None):
        try:
            await super().send_money(amount, idempotency_key=idempotency_key)
        except InvalidFieldsError:
            return


@breaks("an_amount_of_another_type_is_a_type_error")
class TakesAnyAmount(LoopbackPlugin):
    async def send_money(self, amount, *, idempotency_key=None):
        await super().send_money(str(amount), idempotency_key=idempotency_key)


@breaks("send_money_before_connect_is_not_connected", "a_lost_acknowledgement_leaves_the_transfer_in_doubt")
class SilentlySendsNoMoney(LoopbackPlugin):
    async def send_money(self, amount, *, idempotency_key=None):
        try:
            await super().send_money(amount, idempotency_key=idempotency_key)
        except (NotConnectedError, TransferInDoubtError):
            return


@breaks("send_money_waits_for_the_acknowledgement")
class NeverWaitsForMoney(LoopbackPlugin):
    async def send_money(self, amount, *, idempotency_key=None):
        self.tasks.spawn(super().send_money, amount)


@breaks("current_transfer_is_the_handlers_own")
class GivesAnotherTransfer(LoopbackPlugin):
    def register_money_handler(self, handler):
        async def confuse(handler, amount):
            enter_transfer(Transfer("1"))
            await handler(amount)

        super().register_money_handler(wrapping(handler, confuse))


@breaks(
    "idempotency_keys_are_checked",
    "a_known_key_has_its_effect_once",
    "a_known_key_of_another_amount_is_a_duplicate_id_error",
)
class IgnoresKeys(LoopbackPlugin):
    async def send_money(self, amount, *, idempotency_key=None):
        await super().send_money(amount)


class KeepsTheMoney(LoopbackPlugin):
    async def send_money(self, amount, *, idempotency_key=None):
        pass


@asynccontextmanager
async def without_money(conditions):
    async with loopback(conditions, KeepsTheMoney) as subject:
        yield evolve(subject, has_money=False)


BROKEN["a_plugin_without_money_says_so"] = without_money


@breaks("without_a_store_there_are_no_transfers")
class HasNoTransfers(LoopbackPlugin):
    transfers = None  # type: ignore[assignment]  # which is what is wrong with it


@breaks("a_transactional_handler_counts_with_its_transfer")
class NeverRefuses(LoopbackPlugin):
    def register_transactional_money_handler(self, handler):
        def swallow(connection, transfer):
            try:
                handler(connection, transfer)
            except LedgerPluginError:
                return

        super().register_transactional_money_handler(swallow)


@breaks("money_handlers_of_both_kinds_exclude_each_other")
class ReplacesTheOtherKind(LoopbackPlugin):
    def register_transactional_money_handler(self, handler):
        self.deregister_money_handler()
        super().register_transactional_money_handler(handler)


@breaks("a_money_handler_is_tried_again_until_it_succeeds")
class TriesOnce(LoopbackPlugin):
    def register_money_handler(self, handler):
        async def swallow(handler, amount):
            try:
                await handler(amount)
            except OSError:
                return

        super().register_money_handler(wrapping(handler, swallow))
