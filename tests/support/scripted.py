"""A plugin that does what a test says, installed as another package's plugin would be."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import trio
from attrs import field, frozen

from trio_ledger_plugin import PluginServices, open_plugin
from trio_ledger_plugin.exchange import ExchangePlugin
from trio_ledger_plugin.options.base import PluginOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

    from trio_ledger_plugin.runtime.calls import CallTable
    from trio_ledger_plugin.runtime.exchange import Exchange
    from trio_ledger_plugin.runtime.handlers import Reply
    from trio_ledger_plugin.runtime.workers import RequestQueue
    from trio_ledger_plugin.transfer import Transfer


async def stay(plugin: ScriptedPlugin, task_status: trio.TaskStatus[None]) -> None:
    """Be connected at once, until cancelled."""
    plugin.link_up()
    task_status.started()
    await trio.sleep_forever()


async def hang(plugin: ScriptedPlugin, task_status: trio.TaskStatus[None]) -> None:
    await trio.sleep_forever()


def after(seconds: float, script: Any = stay) -> Any:
    async def run(plugin: ScriptedPlugin, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(seconds)
        await script(plugin, task_status)

    return run


def refused(error: Exception) -> Any:
    async def run(plugin: ScriptedPlugin, task_status: trio.TaskStatus[None]) -> None:
        await trio.lowlevel.checkpoint()
        raise error

    return run


def broken_after(seconds: float, error: Exception) -> Any:
    """Be connected, and meet a fatal error later."""

    async def run(plugin: ScriptedPlugin, task_status: trio.TaskStatus[None]) -> None:
        plugin.link_up()
        task_status.started()
        await trio.sleep(seconds)
        raise error

    return run


@frozen(kw_only=True)
class ScriptedOptions(PluginOptions):
    script: Any = field(default=stay)
    disconnect_seconds: float = field(default=0.0)


class ScriptedPlugin(ExchangePlugin):
    """Connects as its script says; the test answers its calls, and reads its replies."""

    options_class: ClassVar[type[ScriptedOptions]] = ScriptedOptions
    options: ScriptedOptions

    def __init__(
        self,
        options: ScriptedOptions,
        services: PluginServices,
        nursery: trio.Nursery,
        on_failed: Any = None,
    ) -> None:
        super().__init__(options, services, nursery, on_failed)
        self.attempts = 0
        self.replies: dict[int, Reply] = {}
        self.sent: list[Any] = []
        self._last: Exchange | None = None

    def link_up(self) -> None:
        super().link_up()
        self._last = self._exchange

    @property
    def calls(self) -> CallTable:
        """The calls over the present link, or the last one."""
        assert self._last is not None
        return self._last.calls

    @property
    def queue(self) -> RequestQueue:
        """The requests that came over it."""
        assert self._last is not None
        return self._last.requests

    async def run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        self.attempts += 1
        await self.options.script(self, task_status)

    def send_request(self, number: int, request: bytes | Transfer) -> None:
        self.sent.append(request)

    def send_reply(self, number: int, reply: Reply) -> None:
        self.replies[number] = reply

    async def finish_calls(self) -> None:
        await super().finish_calls()
        await trio.sleep(self.options.disconnect_seconds)

    def ask(self, request_id: int, payload: bytes | Transfer) -> bool:
        """Have the handler serve a request from the peer."""
        return self.queue.submit(request_id, payload, len(payload) if isinstance(payload, bytes) else 0)


def scripted(nursery: trio.Nursery, script: Any = stay, **options: Any) -> ScriptedPlugin:
    """Make one as ``create_plugin`` does."""
    return ScriptedPlugin(ScriptedOptions(script=script, **options), PluginServices(), nursery)


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str = "scripted") -> None:
    """Install the plugin as a package of its own, so that its name and options work in ``open_plugin``."""
    info = folder / "scripted_ledger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scripted-ledger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[trio_ledger_plugin.plugins]\n{name} = support.scripted:ScriptedPlugin\n")
    monkeypatch.syspath_prepend(str(folder))


@asynccontextmanager
async def open_scripted(script: Any = stay, **how: Any) -> AsyncIterator[ScriptedPlugin]:
    """Open one with ``open_plugin``; it must be installed."""
    async with open_plugin(ScriptedOptions(script=script), **how) as plugin:
        assert isinstance(plugin, ScriptedPlugin)
        yield plugin
