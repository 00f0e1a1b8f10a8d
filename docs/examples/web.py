"""A web application on quart-trio and Hypercorn that embeds a server of many accounts.

python web.py [WEB-PORT [BTP-PORT]]     ports 8000 and 7768 by default; Ctrl-C ends both
curl localhost:8000/accounts            shows the connected accounts

The plugin's tasks run in the application's nursery, from before the first web request until after the last one.
"""

import signal
import sys
from functools import partial

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from quart_trio import QuartTrio

from trio_ledger_plugin import AccountsOptions, AccountsPlugin, HostInfo, LedgerPluginError, create_plugin


async def echo(data: bytes) -> bytes:
    return data


def make_app(btp_port: int) -> QuartTrio:
    app = QuartTrio(__name__)

    def server() -> AccountsPlugin:
        plugin: AccountsPlugin = app.extensions["btp"]
        return plugin

    @app.before_serving
    async def open_server() -> None:
        options = AccountsOptions(port=btp_port, debug_host_ildcp_info=HostInfo("example.web", 9, "XRP"))
        plugin = create_plugin(options, nursery=app.nursery)
        plugin.register_data_handler(echo)
        await plugin.connect()
        print("BTP at", plugin.address, flush=True)
        app.extensions["btp"] = plugin

    @app.after_serving
    async def close_server() -> None:
        await server().aclose()
        print("closed", flush=True)

    @app.get("/accounts")
    async def accounts():
        return {account.name: account.connections for account in server().accounts()}

    @app.post("/accounts/<name>/ask/<text>")
    async def ask(name: str, text: str):
        """Send a request to an account's client, and return its answer."""
        try:
            answer = await server().account(name).send_data(text.encode())
        except LedgerPluginError as error:
            return {"error": error.name}, 502
        return {"answer": answer.decode(errors="replace")}

    return app


async def wait_for_end() -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await anext(signals)


async def main(web_port: int, btp_port: int) -> None:
    config = Config.from_mapping(bind=f"127.0.0.1:{web_port}", errorlog=None)
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(partial(serve, shutdown_trigger=wait_for_end), make_app(btp_port), config)
        print("web at", *urls, flush=True)


if __name__ == "__main__":
    ports = [int(port) for port in sys.argv[1:]]
    web_port, btp_port = ports + [8000, 7768][len(ports) :]
    trio.run(main, web_port, btp_port)
