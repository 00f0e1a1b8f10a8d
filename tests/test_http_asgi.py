"""The endpoint as an ASGI application, called as a server calls it."""

from __future__ import annotations

import pytest
import trio
from support.calls import sleeping
from support.http import FULFILL, PREPARE, TOKEN, open_http, sending, serving

from trio_ledger_plugin import InvalidFieldsError


async def fulfill(data):
    return FULFILL


class Server:
    """One request, as an ASGI server gives it to an application."""

    def __init__(self, body=PREPARE, *, method="POST", path="/ilp", headers=(), token=TOKEN, pieces=1, leave=False):
        names = [(b"host", b"u"), (b"content-length", str(len(body)).encode()), *headers]
        if token:
            names.append((b"authorization", f"Bearer {token}".encode()))
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": names,
            "client": ("192.0.2.7", 1234),
        }
        size = -(-len(body) // pieces) or 1
        parts = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
        self._messages = [
            {"type": "http.request", "body": part, "more_body": number + 1 < len(parts)}
            for number, part in enumerate(parts)
        ]
        if leave:
            self._messages = [{"type": "http.disconnect"}]
        self.sent = []

    async def receive(self):
        if not self._messages:
            await trio.sleep_forever()
        return self._messages.pop(0)

    async def send(self, message):
        self.sent.append(message)

    async def run(self, app):
        await app(self.scope, self.receive, self.send)
        if not self.sent:
            return None
        start, body = self.sent
        assert (b"content-length", str(len(body["body"])).encode()) in start["headers"]
        return start["status"], dict(start["headers"]).get(b"content-type"), body["body"]


PACKET = b"application/octet-stream"
TEXT = b"text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (Server(), 200),
        (Server(pieces=7), 200),
        (Server(b""), 200),
        (Server(headers=[(b"content-type", b"application/ilp+octet-stream")]), 200),
        (Server(headers=[(b"content-type", b"text/plain")]), 415),
        (Server(token="wrong"), 401),
        (Server(token=None), 401),
        (Server(method="PUT"), 405),
        (Server(method="GET", token=None), 200),
        (Server(bytes(70_000)), 413),
        (Server(headers=[(b"transfer-encoding", b"chunked")]), 400),
        (Server(headers=[(b"authorization", b"Bearer x")]), 400),
    ],
)
async def test_request_has_its_status(request_, status):
    async with open_http(serving(incoming={"port": None}), data_handler=fulfill) as plugin:
        answer = await request_.run(plugin.asgi_app)
    assert answer[0] == status
    if status == 200 and request_.scope["method"] == "POST":
        assert answer[1:] == (PACKET, FULFILL)
    else:
        assert answer[1] == TEXT


async def test_body_longer_than_it_says_is_refused():
    request = Server(bytes(70_000))
    request.scope["headers"] = [(b"authorization", f"Bearer {TOKEN}".encode())]
    async with open_http(serving(incoming={"port": None}), data_handler=fulfill) as plugin:
        assert (await request.run(plugin.asgi_app))[0] == 413


async def test_client_that_leaves_gets_nothing():
    async with open_http(serving(incoming={"port": None}), data_handler=fulfill) as plugin:
        assert await Server(leave=True).run(plugin.asgi_app) is None
        assert plugin.statistics().requests_received == 0


async def test_mounted_endpoint_beside_the_own_port():
    async with open_http(serving(), data_handler=fulfill) as plugin:
        assert plugin.address
        assert (await Server().run(plugin.asgi_app))[0] == 200


async def test_plugin_that_is_not_connected_is_unavailable():
    async with open_http(serving(incoming={"port": None}), data_handler=fulfill) as plugin:
        app = plugin.asgi_app
        await plugin.disconnect()
        assert (await Server().run(app))[0] == 503
        await plugin.connect()
        assert (await Server().run(app))[0] == 200
    assert (await Server().run(app))[0] == 503


async def test_request_in_hand_ends_with_the_plugin():
    async with trio.open_nursery() as nursery:
        answers = []

        async def ask(app):
            answers.append(await Server().run(app))

        options = serving(incoming={"port": None}, close_timeout=0.05)
        async with open_http(options, data_handler=sleeping(100)) as plugin:
            nursery.start_soon(ask, plugin.asgi_app)
            await trio.testing.wait_all_tasks_blocked()
            await plugin.disconnect()
    assert answers[0][0] == 503


async def test_cancelled_request_leaves_its_handler_running():
    arrived, go_on, done = trio.Event(), trio.Event(), trio.Event()

    async def slow(data):
        arrived.set()
        await go_on.wait()
        done.set()
        return FULFILL

    async with open_http(serving(incoming={"port": None}), data_handler=slow) as plugin:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Server().run, plugin.asgi_app)
            await arrived.wait()
            nursery.cancel_scope.cancel()
        go_on.set()
        with trio.fail_after(1):
            await done.wait()


async def test_lifespan_of_an_application_without_another_is_served():
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message["type"])

    async with open_http(serving(incoming={"port": None})) as plugin:
        await plugin.asgi_app({"type": "lifespan"}, receive, send)
        with pytest.raises(RuntimeError, match="websocket"):
            await plugin.asgi_app({"type": "websocket"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_plugin_that_only_sends_has_no_application():
    async with open_http(sending("http://localhost:1")) as plugin:
        with pytest.raises(InvalidFieldsError):
            _ = plugin.asgi_app
