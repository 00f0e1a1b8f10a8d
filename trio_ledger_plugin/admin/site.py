"""What the admin page's server answers to each request."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from attrs import asdict

from ..errors import InvalidFieldsError, InvalidServicesError, LedgerPluginError, TransferNotFoundError
from ..http.gate import RefusedError
from ..log import format_message
from .accounts import Query
from .health import check_health
from .limits import REACHED, budgets_of
from .metrics import MEDIA_TYPE, write_metrics
from .pace import PAGE_SECONDS
from .page import load_page
from .responses import Response, json_response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ..http.heads import PageHead
    from ..runtime.plugin_log import PluginLog
    from ..transfer import JournalEntry
    from .watched import Watched

__all__ = ["Site"]

PAGE: Final = "/"
DOUBTS_ROWS: Final = 50
FAILED: Final = "the answer failed; the log says why"


class Site:
    """Answers requests about plugins.

    Args:
        plugins: The plugins.
        log: Where failures are logged.
    """

    def __init__(self, plugins: Sequence[Watched], log: PluginLog) -> None:
        self._plugins = plugins
        self._log = log
        self._page = load_page()
        self._gets: dict[str, Callable[[dict[str, str]], Awaitable[Response]]] = {
            PAGE: self._get_page,
            "/health": self._get_health,
            "/metrics": self._get_metrics,
            "/api/overview": self._get_overview,
            "/api/accounts": self._get_accounts,
            "/api/doubts": self._get_doubts,
        }

    def is_open(self, path: str) -> bool:
        """Whether a path is answered without a token: only the page, which itself says nothing about the plugins."""
        return path == PAGE

    async def answer(self, head: PageHead, body: bytes) -> Response:
        """Answer a request.

        Raises:
            RefusedError: The request is refused.

        Cancellation: A transfer may have been settled.
        """
        try:
            return await self._route(head, body)
        except RefusedError:
            raise
        except Exception as error:
            # The answer shows nothing of it, and the server goes on. It may be about any of the plugins.
            said = format_message("%o", error)
            for watched in self._plugins:
                said = watched.plugin.log.redact(said)
            self._log.once(head.path).error("the admin page cannot answer %s: %s", head.path, said)
            raise RefusedError(500, FAILED) from error

    async def _route(self, head: PageHead, body: bytes) -> Response:
        if head.path == "/api/settle":
            _check_method(head, "POST")
            return await self._settle(head, body)
        get = self._gets.get(head.path)
        if get is None:
            raise RefusedError(404, "there is nothing at this path")
        _check_method(head, "GET", "HEAD")
        return await get({name: values[-1] for name, values in parse_qs(head.query).items()})

    # What anything may read.

    async def _get_page(self, _: dict[str, str]) -> Response:
        return self._page

    async def _get_health(self, _: dict[str, str]) -> Response:
        health = await check_health(self._plugins)
        return json_response(health.as_json(), health.status)

    async def _get_metrics(self, _: dict[str, str]) -> Response:
        return Response(200, await write_metrics(self._plugins), MEDIA_TYPE)

    # What the page's script reads.

    async def _get_overview(self, query: dict[str, str]) -> Response:
        watched = self._find(query.get("plugin", "0"))
        plugin, statistics = watched.plugin, watched.statistics.get()
        health = await check_health(self._plugins, PAGE_SECONDS)
        money = watched.money.seen
        return json_response(
            {
                "plugins": [each.name for each in self._plugins],
                "name": watched.name,
                "address": plugin.address,
                "connected": plugin.is_connected(),
                "health": health.as_json(),
                "watched_seconds": int(watched.seconds),
                "statistics": asdict(statistics),
                "points": [
                    [point.at, point.received, point.sent, point.errors, point.median, point.slow]
                    for point in watched.series.points
                ],
                "errors": {"handled": watched.handled.errors, "answered": watched.answered.errors},
                "budgets": [asdict(budget) for budget in budgets_of(plugin, statistics)],
                "reached": [[text, getattr(statistics, name)] for name, text in REACHED.items()],
                "has_accounts": watched.accounts is not None,
                "has_journal": watched.money.transfers is not None,
                "money": None if money is None else _money_json(watched, money.count),
                "events": [asdict(event) for event in reversed(watched.events)],
            }
        )

    async def _get_accounts(self, query: dict[str, str]) -> Response:
        accounts = self._find(query.get("plugin", "0")).accounts
        if accounts is None:
            raise RefusedError(404, "this plugin has no accounts")
        if not await accounts.looks.wait(PAGE_SECONDS):
            raise RefusedError(500, FAILED)
        wanted = Query(
            search=query.get("search", ""),
            sort=query.get("sort", "name"),
            descending=query.get("order") == "desc",
            page=_number(query.get("page", "0")),
            rows=_number(query.get("rows", "50")),
        )
        return json_response(accounts.page(wanted))

    async def _get_doubts(self, query: dict[str, str]) -> Response:
        view = self._find(query.get("plugin", "0")).money
        await view.looks.wait(PAGE_SECONDS)
        money = view.seen
        doubts: Sequence[JournalEntry] = () if money is None else money.doubts
        pages = max(1, -(-len(doubts) // DOUBTS_ROWS))
        page = min(_number(query.get("page", "0")), pages - 1)
        rows = [_doubt_json(entry) for entry in doubts[page * DOUBTS_ROWS : (page + 1) * DOUBTS_ROWS]]
        return json_response({"total": 0 if money is None else money.count, "page": page, "pages": pages, "rows": rows})

    # What it changes.

    async def _settle(self, head: PageHead, body: bytes) -> Response:
        """Settle a transfer in doubt."""
        if head.content_type != "application/json":
            # A form of another site cannot have this type.
            raise RefusedError(415, "the body is application/json")
        wish = _read_wish(body)
        watched = self._find(wish["plugin"])
        try:
            await watched.money.settle(wish["account"], wish["key"], is_applied=wish["outcome"] == "applied")
        except TransferNotFoundError as error:
            raise RefusedError(404, str(error)) from error
        except (InvalidFieldsError, InvalidServicesError) as error:
            raise RefusedError(409, str(error)) from error
        except LedgerPluginError as error:
            raise RefusedError(503, watched.plugin.log.redact(str(error))) from error
        return json_response({"settled": True})

    def _find(self, number: str) -> Watched:
        with suppress(ValueError, IndexError):
            if (index := int(number)) >= 0:
                return self._plugins[index]
        raise RefusedError(404, "there is no such plugin")


def _check_method(head: PageHead, *methods: str) -> None:
    if head.method.decode("latin-1") not in methods:
        raise RefusedError(405, f"this path takes {' and '.join(methods)}", (("Allow", ", ".join(methods)),))


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _read_wish(body: bytes) -> dict[str, str]:
    """Return which transfer to settle, and how.

    Raises:
        RefusedError: The body is not what the page sends.
    """
    wish: Any = None
    with suppress(ValueError, RecursionError):
        wish = json.loads(body)
    names = ("plugin", "account", "key", "outcome")
    right = isinstance(wish, dict) and all(isinstance(wish.get(name), str) for name in names)
    if not right or wish["outcome"] not in ("applied", "not applied"):
        raise RefusedError(400, f"the body is an object with the texts {', '.join(names)}")
    return {name: wish[name] for name in names}


def _money_json(watched: Watched, doubts: int) -> dict[str, object]:
    money = watched.money.seen
    assert money is not None
    states = {f"{direction.value} {state.value}": count for (direction, state), count in watched.money.states.items()}
    return {
        # As text: JavaScript's numbers are not exact enough.
        "sent": str(money.totals.sent),
        "received": str(money.totals.received),
        "unsettled": str(money.totals.in_doubt),
        "doubts": doubts,
        "oldest_seconds": int(money.oldest_seconds),
        "store_ms": round(money.store_seconds * 1000, 1),
        "failed": watched.money.has_failed,
        "states": states,
    }


def _doubt_json(entry: JournalEntry) -> dict[str, object]:
    return {
        "account": entry.account,
        "key": entry.key,
        "amount": str(entry.amount),
        "level": entry.level.value,
        "created": entry.created.timestamp(),
    }
