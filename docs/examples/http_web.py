"""A web application on quart-trio and Hypercorn that serves ILP over HTTP at /ilp, beside its own routes.

ILP_TOKEN=t0ken python http_web.py [PORT]     port 8000 by default; Ctrl-C ends it
trio-ledger-plugin ping http://:t0ken@localhost:8000/ilp

The plugin opens no port: Hypercorn reads the requests, and TLS, logs and limits are those of the application.
"""

import os
import signal
import sys
from functools import partial

import trio
from hypercorn.config import Config
from hypercorn.middleware.dispatcher import TrioDispatcherMiddleware
from hypercorn.trio import serve
from quart_trio import QuartTrio

from trio_ledger_plugin import HttpOptions, IncomingOptions, open_plugin

app = QuartTrio(__name__)


@app.get("/")
async def index() -> dict[str, str]:
    return {"service": "a shop that is paid over Interledger"}


async def echo(data: bytes) -> bytes:
    return data


async def wait_for_end() -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        await anext(signals)


async def main(port: int) -> None:
    incoming = IncomingOptions(port=None, static_token=os.environ["ILP_TOKEN"])
    config = Config.from_mapping(bind=f"127.0.0.1:{port}", errorlog=None)
    async with open_plugin(HttpOptions(incoming=incoming), data_handler=echo) as plugin, trio.open_nursery() as nursery:
        # The first path that fits decides.
        both = TrioDispatcherMiddleware({"/ilp": plugin.asgi_app, "": app})
        urls = await nursery.start(partial(serve, shutdown_trigger=wait_for_end), both, config)
        print("web at", *urls, flush=True)
    print("closed after", plugin.statistics().requests_received, "packets", flush=True)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
