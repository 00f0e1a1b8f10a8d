"""The functions that create and open plugins."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, NoReturn, TypedDict, overload
from uuid import uuid4

import trio

from .errors import PluginFailedError
from .options.loopback import LoopbackOptions
from .registry import resolve_plugin
from .runtime.tasks import without_cancellation
from .services import PluginServices

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from types import TracebackType
    from typing import Unpack

    from .btp.accounts import AccountsPlugin
    from .btp.options import AccountsOptions, BtpOptions
    from .btp.plugin import BtpPlugin
    from .http.accounts import HttpAccountsPlugin
    from .http.options import HttpAccountsOptions, HttpOptions
    from .http.plugin import HttpPlugin
    from .loopback import LoopbackPlugin
    from .options.base import ConnectOptions
    from .options.checked import CheckedOptions
    from .plugin import LedgerPlugin
    from .runtime.handlers import DataHandler, MoneyHandler, TransactionalMoneyHandler

__all__ = ["bare_nursery", "create_plugin", "loopback_pair", "open_plugin"]

HOW_TO_OPEN = "a plugin is opened with 'async with open_plugin(...) as plugin:'"


class OpeningArguments(TypedDict, total=False):
    """The keyword arguments of ``open_plugin()``, which documents them."""

    connect: ConnectOptions | None
    data_handler: DataHandler | None
    money_handler: MoneyHandler | None
    transactional_money_handler: TransactionalMoneyHandler | None
    nursery: trio.Nursery | None


@overload
def create_plugin(
    opts: AccountsOptions, services: PluginServices | None = None, *, nursery: trio.Nursery
) -> AccountsPlugin: ...
@overload
def create_plugin(opts: BtpOptions, services: PluginServices | None = None, *, nursery: trio.Nursery) -> BtpPlugin: ...
@overload
def create_plugin(
    opts: HttpAccountsOptions, services: PluginServices | None = None, *, nursery: trio.Nursery
) -> HttpAccountsPlugin: ...
@overload
def create_plugin(
    opts: HttpOptions, services: PluginServices | None = None, *, nursery: trio.Nursery
) -> HttpPlugin: ...
@overload
def create_plugin(
    opts: LoopbackOptions, services: PluginServices | None = None, *, nursery: trio.Nursery
) -> LoopbackPlugin: ...
@overload
def create_plugin(
    opts: CheckedOptions | Mapping[str, object], services: PluginServices | None = None, *, nursery: trio.Nursery
) -> LedgerPlugin: ...


def create_plugin(
    opts: CheckedOptions | Mapping[str, object],
    services: PluginServices | None = None,
    *,
    nursery: trio.Nursery,
) -> LedgerPlugin:
    """Make a plugin that is not connected yet (RFC-0024, new LedgerPlugin).

    Most programs use ``open_plugin()``, which also connects and closes.

    Args:
        opts: An options object; or a mapping, such as one parsed from JSON, with the plugin's name as ``"plugin"``.
        services: The application's store and log.
        nursery: Where the plugin's tasks run, from ``connect()`` to ``disconnect()`` or ``aclose()``. A fatal error
            propagates through it as ``PluginFailedError``.

    Returns:
        The plugin; call ``connect()`` next, and ``aclose()`` in the end. For the options object of a plugin of this
        package, type checkers know the plugin's class.

    Raises:
        TypeError: ``opts``, ``services`` or ``nursery`` has a wrong type.
        InvalidFieldsError: Fields of ``opts`` are wrong. The text names each.
        InvalidServicesError: A service is needed and missing.
    """
    if not isinstance(nursery, trio.Nursery):
        raise TypeError(f"nursery is a trio.Nursery, not {type(nursery).__name__}")
    plugin, options = resolve_plugin(opts)
    return plugin(options, _checked_services(services), nursery)


@overload
def open_plugin(
    opts: AccountsOptions, services: PluginServices | None = None, **how: Unpack[OpeningArguments]
) -> AbstractAsyncContextManager[AccountsPlugin]: ...
@overload
def open_plugin(
    opts: BtpOptions, services: PluginServices | None = None, **how: Unpack[OpeningArguments]
) -> AbstractAsyncContextManager[BtpPlugin]: ...
@overload
def open_plugin(
    opts: HttpAccountsOptions, services: PluginServices | None = None, **how: Unpack[OpeningArguments]
) -> AbstractAsyncContextManager[HttpAccountsPlugin]: ...
@overload
def open_plugin(
    opts: HttpOptions, services: PluginServices | None = None, **how: Unpack[OpeningArguments]
) -> AbstractAsyncContextManager[HttpPlugin]: ...
@overload
def open_plugin(
    opts: LoopbackOptions, services: PluginServices | None = None, **how: Unpack[OpeningArguments]
) -> AbstractAsyncContextManager[LoopbackPlugin]: ...
@overload
def open_plugin(
    opts: CheckedOptions | Mapping[str, object],
    services: PluginServices | None = None,
    **how: Unpack[OpeningArguments],
) -> AbstractAsyncContextManager[LedgerPlugin]: ...


def open_plugin(
    opts: CheckedOptions | Mapping[str, object],
    services: PluginServices | None = None,
    *,
    connect: ConnectOptions | None = None,
    data_handler: DataHandler | None = None,
    money_handler: MoneyHandler | None = None,
    transactional_money_handler: TransactionalMoneyHandler | None = None,
    nursery: trio.Nursery | None = None,
) -> AbstractAsyncContextManager[LedgerPlugin]:
    """Make a plugin, connect it, and close it at the end of the block.

    The block never wraps an error in an exception group. An error of the body is raised unchanged, and so is an error
    of the connection. A fatal error of the plugin cancels the body and is raised as ``PluginFailedError``. A normal
    exit drains for up to ``close_timeout`` seconds.

    Args:
        opts: An options object; or a mapping, such as one parsed from JSON, with the plugin's name as ``"plugin"``.
        services: The application's store and log.
        connect: The timeout of the connection, such as ``ConnectOptions(seconds=5)``.
        data_handler: ``async (data: bytes) -> bytes``, registered before the connection opens.
        money_handler: ``async (amount: str) -> None``, likewise.
        transactional_money_handler: ``(connection, transfer) -> None``, likewise, instead of ``money_handler``.
        nursery: Where the plugin's tasks run; if None, the block opens a nursery. In both cases the tasks end with the
            block, and a fatal error cancels only the block.

    Yields:
        The connected plugin. For the options object of a plugin of this package, type checkers know the plugin's class,
        such as the ``AccountsPlugin`` of ``AccountsOptions``.

    Raises:
        TypeError: An argument has a wrong type.
        InvalidFieldsError: Fields of ``opts`` are wrong, or credentials are missing.
        InvalidServicesError: A service is needed and missing.
        NotAcceptedError: The peer refuses the credentials.
        UnreachableError: The peer cannot be reached; ``ConnectTimeoutError`` after a timeout.
        OSError: A listener cannot open its port.
        PluginFailedError: The plugin had a fatal error, which is the cause.
        RuntimeError: The program does not run in Trio, or enters the same object twice.

    Cancellation: The plugin is closed at once, without draining.
    """
    return _Opening(
        _open(
            opts,
            services,
            connect=connect,
            data_handler=data_handler,
            money_handler=money_handler,
            transactional_money_handler=transactional_money_handler,
            nursery=nursery,
        )
    )


@asynccontextmanager
async def loopback_pair(
    services: PluginServices | None = None, *, nursery: trio.Nursery | None = None
) -> AsyncIterator[tuple[LoopbackPlugin, LoopbackPlugin]]:
    """Open two loopback plugins that are peers.

    Args:
        services: The services of both. In a transactional store, the first keeps its transfers in the ledger ``main``,
            the second in ``peer``.
        nursery: Where their tasks run; if None, the block opens a nursery.

    Yields:
        The two plugins, connected to each other.

    Raises:
        PluginFailedError: One of them had a fatal error.

    Cancellation: Closes both at once.
    """
    name = f"pair-{uuid4()}"
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(open_plugin(LoopbackOptions(name=name), services, nursery=nursery))
        options = LoopbackOptions(name=name, ledger_id="peer")
        second = await stack.enter_async_context(open_plugin(options, services, nursery=nursery))
        yield first, second


class _Opening(AbstractAsyncContextManager["LedgerPlugin"]):
    """What ``open_plugin()`` returns; its errors explain ``async with`` if it is used in another way."""

    def __init__(self, block: AbstractAsyncContextManager[LedgerPlugin]) -> None:
        self._block = block
        self._is_used = False

    async def __aenter__(self) -> LedgerPlugin:
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            raise RuntimeError(
                "open_plugin() needs Trio: run the program with trio.run(main), not with asyncio"
            ) from None
        if self._is_used:
            raise RuntimeError("open_plugin() was called once for two blocks: call it again for each 'async with'")
        self._is_used = True
        return await self._block.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._block.__aexit__(kind, error, traceback)  # noqa: ASYNC102 (its waits have deadlines)

    # Hidden from type checkers, which already report such uses as errors.
    if not TYPE_CHECKING:

        def __enter__(self) -> NoReturn:
            raise TypeError(HOW_TO_OPEN)

        def __exit__(self, *_: object) -> NoReturn:
            raise TypeError(HOW_TO_OPEN)

        def __await__(self) -> NoReturn:
            raise TypeError(HOW_TO_OPEN)

        def __getattr__(self, name: str) -> NoReturn:
            raise AttributeError(f"no {name!r} here: {HOW_TO_OPEN}", name=name, obj=self)


@asynccontextmanager
async def _open(
    opts: CheckedOptions | Mapping[str, object],
    services: PluginServices | None,
    *,
    connect: ConnectOptions | None,
    data_handler: DataHandler | None,
    money_handler: MoneyHandler | None,
    transactional_money_handler: TransactionalMoneyHandler | None,
    nursery: trio.Nursery | None,
) -> AsyncIterator[LedgerPlugin]:
    if nursery is not None and not isinstance(nursery, trio.Nursery):
        raise TypeError(f"nursery is a trio.Nursery or None, not {type(nursery).__name__}")
    plugin_class, options = resolve_plugin(opts)
    checked = _checked_services(services)
    block = trio.CancelScope()
    failures: list[PluginFailedError] = []

    def on_failed(failure: PluginFailedError) -> None:
        failures.append(failure)
        block.cancel()

    async with bare_nursery(nursery) as plugin_nursery:
        plugin = plugin_class(options, checked, plugin_nursery, on_failed)
        if data_handler is not None:
            plugin.register_data_handler(data_handler)
        if money_handler is not None:
            plugin.register_money_handler(money_handler)
        if transactional_money_handler is not None:
            plugin.register_transactional_money_handler(transactional_money_handler)
        try:
            with block:
                async with _closing(plugin):
                    await plugin.connect(connect)
                    yield plugin
        except ExceptionGroup as group:
            # A nursery in the body groups the errors of the calls that the failure ended; the failure is raised once.
            if not failures or not _has_only(group, failures[0]):
                raise
        if failures:
            raise failures[0]


@asynccontextmanager
async def _closing(plugin: LedgerPlugin) -> AsyncIterator[None]:
    """Close the plugin at the end of the block; the error of the block has priority over a cancellation of closing."""
    try:
        yield
    except BaseException as error:
        try:
            await plugin.aclose()
        except BaseException as raised:  # noqa: ASYNC103, BLE001 (one of the two errors is raised)
            other = without_cancellation(raised)
            if isinstance(other, Exception):
                error.add_note(f"closing the plugin failed as well: {type(other).__name__}: {other}")
            elif other is not None:
                # Such as Ctrl-C.
                raise other from error  # noqa: ASYNC104 (it tells more)
        raise
    else:
        await plugin.aclose()


@asynccontextmanager
async def bare_nursery(given: trio.Nursery | None) -> AsyncIterator[trio.Nursery]:
    """Yield the given nursery, or one that raises an error of the block or of a task without a group.

    Cancellation: Cancels the tasks of a nursery that was not given.
    """
    if given is not None:
        yield given
        return
    error: BaseException | None = None
    try:
        async with trio.open_nursery() as own:
            try:
                yield own
            except BaseException as raised:  # noqa: ASYNC103, BLE001 (raised again below)
                error = raised
    except BaseException as raised:  # noqa: ASYNC103 (one of the two errors is raised below)
        # An error such as Ctrl-C, raised in any task.
        interruption = without_cancellation(raised)
        if interruption is not None:
            raise interruption from interruption.__cause__  # noqa: ASYNC104 (it tells more)
        if error is None:
            raise
    if error is not None:
        raise error


def _has_only(group: ExceptionGroup[Exception], failure: PluginFailedError) -> bool:
    def is_failure(error: Exception) -> bool:
        return isinstance(error, PluginFailedError) and error.__cause__ is failure.__cause__

    return group.split(is_failure)[1] is None


def _checked_services(services: PluginServices | None) -> PluginServices:
    if services is None:
        return PluginServices()
    if not isinstance(services, PluginServices):
        raise TypeError(f"services is a PluginServices or None, not {type(services).__name__}")
    return services
