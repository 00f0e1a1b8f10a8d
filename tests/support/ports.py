"""TCP ports for programs that a test starts."""

import socket

__all__ = ["free_port"]


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port
