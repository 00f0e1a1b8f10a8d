"""What lies under a link: streams, and shortcuts to their sockets."""

import pytest
import trio
from trio.testing import memory_stream_pair

from trio_ledger_plugin.net.sockets import abort_stream, read_socket


class _BrokenStream(trio.abc.AsyncResource):
    async def aclose(self) -> None:
        raise OSError("broken")


async def _abort_after_interruption(stream: trio.abc.Stream) -> None:
    try:
        raise KeyboardInterrupt
    finally:
        await abort_stream(stream)


async def test_aborted_stream_under_cancellation():
    stream, far = memory_stream_pair()
    with trio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(KeyboardInterrupt):
            await _abort_after_interruption(stream)
    with pytest.raises(trio.BrokenResourceError):
        await far.send_all(b"?")


async def test_aborted_stream_that_raises():
    await abort_stream(_BrokenStream())


async def test_reading_a_closed_socket_is_an_error_of_the_connection():
    """Trio's own error would end the whole plugin."""
    near, far = trio.socket.socketpair()
    near.close()
    far.close()
    with pytest.raises(trio.ClosedResourceError):
        await read_socket(near, 1)
