"""TCP ports for programs that a test starts."""

import socket

import trio

__all__ = ["free_port", "has_ipv6", "wait_open"]


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


async def wait_open(port: int) -> None:
    """Wait, for at most ten seconds, until something listens on a port of this machine."""
    with trio.fail_after(10):
        while True:
            try:
                await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
            except OSError:
                await trio.sleep(0.05)
            else:
                return


async def has_ipv6() -> bool:
    """Return whether this machine has IPv6."""
    try:
        (listener,) = await trio.open_tcp_listeners(0, host="::1")
    except OSError:
        return False
    await listener.aclose()
    return True
