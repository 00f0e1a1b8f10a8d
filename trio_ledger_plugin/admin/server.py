"""The server of the admin page: it reads requests from its port, one after the other on a connection.

Invariants: the number of connections is bounded; when one more comes, the one that was silent longest makes way. Each
wait for a client has a deadline. The body of a request is read after its head is accepted.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from ..http.gate import RefusedError
from ..http.heads import BadMessageError, Heads, PageHead, read_page_head
from ..http.messages import MessageReader
from ..net.admission import Admission
from ..net.listen import Listener
from ..net.sockets import abort_stream, accept_tls, explain_failure
from ..options.base import PluginOptions
from ..statistics import Counters
from .responses import Response, refusal_response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..http.options import IncomingOptions
    from ..net.admission import PendingPeer
    from ..runtime.plugin_log import PluginLog
    from .access import Access

    Answer = Callable[[PageHead, bytes], Awaitable[Response]]

__all__ = ["AdminServer"]

READ_BYTES: Final = 16 * 1024
MOST_BODY: Final = 16 * 1024
# How long a client may be silent before a request and within one, and may take to read a response, in seconds.
IDLE_SECONDS: Final = 75.0
MESSAGE_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 10.0
SEND_SECONDS: Final = 10.0
LINGER_SECONDS: Final = 1.0
LIMITS: Final = PluginOptions(max_unauthenticated=256, max_unauthenticated_per_address=32)


class AdminServer:
    """Accepts connections and answers their requests.

    Args:
        incoming: Where to listen.
        access: Judges who may ask.
        is_open: Returns whether a path is answered without a token: it says nothing about the plugins.
        answer: Answers a request that is accepted, given its head and its body.
        log: Where refused tokens and failures are logged.
    """

    def __init__(
        self, incoming: IncomingOptions, access: Access, is_open: Callable[[str], bool], answer: Answer, log: PluginLog
    ) -> None:
        self._access = access
        self._is_open = is_open
        self._answer = answer
        self._log = log
        self._ssl_context = incoming.ssl_context
        self._heads = Heads(read_page_head)
        self._admission = Admission(LIMITS, Counters(), log)
        self._listener = Listener(
            log,
            incoming.host,
            incoming.port,
            self._serve,
            self._admission.make_room,
            is_clear=incoming.ssl_context is None,
        )

    @property
    def address(self) -> str:
        """The URL of the page; its port is the bound one while the server listens."""
        return f"http{'s' if self._ssl_context else ''}://{self._listener.location}/"

    async def run(self, listening: Callable[[], None]) -> None:
        """Listen and serve until cancelled.

        Args:
            listening: Called once the port is bound.

        Raises:
            OSError: The port cannot be opened.

        Cancellation: Stops listening, and drops every connection.
        """
        await self._listener.run(listening)

    async def _serve(self, stream: trio.SocketStream, peer: str) -> bool:
        try:
            with self._admission.admit(peer) as pending:
                secured: trio.abc.Stream | None = stream
                if self._ssl_context is not None:
                    secured = await accept_tls(stream, self._ssl_context, MESSAGE_SECONDS)
                if secured is not None:
                    await self._talk(secured, peer, pending)
        except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError) as error:
            self._log.debug("a connection from %s to the admin page ended: %s", peer, explain_failure(error))
        finally:
            await abort_stream(stream)  # noqa: ASYNC102 (it waits for nothing)
        return False

    async def _talk(self, stream: trio.abc.Stream, peer: str, pending: PendingPeer) -> None:
        reader = MessageReader(self._heads)
        keep_alive = True
        while keep_alive:
            head: PageHead | None = None
            try:
                head = await self._read_head(stream, reader)
                if head is None:
                    return
                pending.progress()
                response = await self._respond(stream, reader, head)
                keep_alive = head.keep_alive
            except BadMessageError as error:
                response, keep_alive = refusal_response(RefusedError(error.status, str(error))), False
            except RefusedError as refusal:
                if refusal.is_failure:
                    await trio.sleep(self._admission.refuse("a request to the admin page", peer, "", refusal))
                # The connection goes on after a request without a body, which was read as a whole.
                keep_alive = head is not None and head.keep_alive and head.length == 0
                response = refusal_response(refusal)
            message = response.write(keep_alive=keep_alive, with_body=head is None or head.method != b"HEAD")
            with trio.move_on_after(SEND_SECONDS) as sending:
                await stream.send_all(message)
            if sending.cancelled_caught:
                return
        await _linger(stream)

    async def _read_head(self, stream: trio.abc.Stream, reader: MessageReader[PageHead]) -> PageHead | None:
        """Return the next head; None if the client has gone or is silent for too long."""
        with trio.move_on_after(IDLE_SECONDS) as waiting:
            while (head := reader.next_head()) is None:
                if reader.buffered and waiting.deadline > trio.current_time() + MESSAGE_SECONDS:
                    waiting.deadline = trio.current_time() + MESSAGE_SECONDS
                data = await stream.receive_some(READ_BYTES)
                if not data:
                    return None
                reader.receive(bytes(data))
            return head
        return None

    async def _respond(self, stream: trio.abc.Stream, reader: MessageReader[PageHead], head: PageHead) -> Response:
        """Judge a request, read its body, and return the response.

        Raises:
            RefusedError: The request is refused.
            BadMessageError: Its body is not right.
        """
        self._access.check_sender(head)
        if not self._is_open(head.path):
            self._access.check_token(head)
        if head.length > MOST_BODY:
            raise BadMessageError(413, f"the body is longer than {MOST_BODY} bytes")
        body: bytes | None = None
        with trio.move_on_after(MESSAGE_SECONDS):
            while (body := reader.next_body(head.length, MOST_BODY)) is None:
                data = await stream.receive_some(READ_BYTES)
                if not data:
                    raise trio.BrokenResourceError("the client left within a request")
                reader.receive(bytes(data))
        if body is None:
            raise BadMessageError(408, "the body did not come in time")
        with trio.move_on_after(ANSWER_SECONDS):
            return await self._answer(head, body)
        raise RefusedError(503, "no answer in time; look at the page again before you repeat anything")


async def _linger(stream: trio.abc.Stream) -> None:
    """Read until the client closes: to close first would reset the connection, and could lose the response."""
    with trio.move_on_after(LINGER_SECONDS), suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        if isinstance(stream, trio.SocketStream):
            await stream.send_eof()
        while await stream.receive_some(READ_BYTES):
            pass
