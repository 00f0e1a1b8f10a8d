"""An application learns at once, and by name, what its services lack."""

import logging
from typing import Any

import pytest

from trio_ledger_plugin.log import StdlibLog
from trio_ledger_plugin.services import PluginServices
from trio_ledger_plugin.stores import MemoryStore


class HalfStore:
    put = "not callable"

    async def get(self, key: Any) -> str | None:
        return None


class QuietLog:
    def debug(self, message: Any, *params: object) -> None: ...
    def info(self, message: Any, *params: object) -> None: ...
    def error(self, message: Any, *params: object) -> None: ...


def test_all_services_are_optional() -> None:
    assert PluginServices() == PluginServices(store=None, log=None)


def test_objects_with_the_methods_are_accepted() -> None:
    store, log = MemoryStore(), StdlibLog()
    services = PluginServices(store=store, log=log)
    assert (services.store, services.log) == (store, log)


@pytest.mark.parametrize(
    ("services", "message"),
    [
        ({"store": HalfStore()}, "store: HalfStore has no method put, delete"),
        ({"store": {"put": print}}, "store: dict has no method put, delete"),
        ({"store": MemoryStore}, "store: MemoryStore is a class"),
        ({"log": QuietLog()}, "log: QuietLog has no method warn"),
        ({"log": 0}, "log: int has no method debug, info, warn, error"),
        ({"log": logging.getLogger()}, r"log: .*StdlibLog\(logger\)"),
    ],
)
def test_wrong_service_is_refused_when_it_is_given(services: Any, message: Any) -> None:
    with pytest.raises(TypeError, match=message):
        PluginServices(**services)


def test_services_are_frozen() -> None:
    services: Any = PluginServices()
    with pytest.raises(AttributeError):
        services.store = MemoryStore()
