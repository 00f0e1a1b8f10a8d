"""A plugin of one's own, over a socket that is connected already: one end of a socketpair, say.

A frame is a kind, a request id and a length, and then so many bytes. Deadlines, limits, handlers and events are the
base class's; what is written here is how bytes travel.
"""

import socket
import struct
from collections.abc import Callable
from itertools import count

import trio
from attrs import field, frozen

from trio_ledger_plugin import (
    ConnectionLostError,
    DecodeError,
    LedgerPlugin,
    LedgerPluginError,
    PluginClosedError,
    PluginFailedError,
    PluginServices,
    RemoteError,
    ResponseTimeoutError,
    Transfer,
    TransferInDoubtError,
    UnreachableError,
)
from trio_ledger_plugin.calls import CallTable
from trio_ledger_plugin.checking import COUNT
from trio_ledger_plugin.errors import told_to_peer
from trio_ledger_plugin.handlers import HandlerQueue
from trio_ledger_plugin.options import LinkOptions

HEAD = struct.Struct(">BII")
DATA, MONEY, ANSWER, ERROR = range(4)
# What can befall a transfer that was handed to the socket: nobody here knows whether the peer has applied it.
IN_DOUBT = (ConnectionLostError, ResponseTimeoutError, PluginClosedError, PluginFailedError)


@frozen(kw_only=True)
class PairOptions(LinkOptions):
    fd: int = field(metadata=COUNT)  # the socket's number; the plugin owns the socket from connect() on


class PairPlugin(LedgerPlugin):
    options_class = PairOptions
    options: PairOptions

    def __init__(
        self,
        options: PairOptions,
        services: PluginServices,
        nursery: trio.Nursery,
        on_failed: Callable[[PluginFailedError], None] | None = None,
    ) -> None:
        super().__init__(options, services, nursery, on_failed)
        self._ids = count(1)
        self._used = False
        self._calls = CallTable(limit=self.options.max_in_flight, timeout=self.options.response_timeout)
        self._requests = HandlerQueue(self.pool, self, self.handlers.answer)
        self._send_frame, self._frames = trio.open_memory_channel[bytes](2 * self.options.max_in_flight)

    # The connection.

    async def run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        if self._used:
            raise UnreachableError("its socket is closed, and a socketpair cannot be dialed again")
        self._used = True
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=self.options.fd)))
        self.tasks.watch(self, trio.current_time() + self.options.response_timeout)
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(self._write, stream)
            task_status.started()
            self.link_up()
            try:
                await self._read(stream)
                reason = "the peer closed its end"
            except (trio.BrokenResourceError, ValueError) as error:
                reason = f"the connection broke: {error}"
            finally:
                self._requests.abandon()
                self._calls.close(lambda: ConnectionLostError("the peer is gone, and may have acted"))
            self.link_down(reason)
            await trio.sleep_forever()

    async def _write(self, stream: trio.abc.Stream) -> None:
        """Write whole frames, in one task: a caller that is cancelled tears none."""
        try:
            async for frame in self._frames:
                await stream.send_all(frame)
        except trio.BrokenResourceError:
            pass  # the reader finds out as well

    async def _read(self, stream: trio.abc.Stream) -> None:
        waiting = bytearray()
        async for chunk in stream:
            waiting += chunk
            while len(waiting) >= HEAD.size:
                kind, number, length = HEAD.unpack_from(waiting)
                end = HEAD.size + length
                if length > self.options.max_message_bytes:
                    raise DecodeError(f"a frame of {length} bytes is too long")
                if len(waiting) < end:
                    break
                self._receive(kind, number, bytes(waiting[HEAD.size : end]))
                del waiting[:end]

    # Frames in.

    def _receive(self, kind: int, number: int, body: bytes) -> None:
        if kind in (DATA, MONEY):
            self.counters.requests_received += 1
            request = body if kind == DATA else Transfer(str(int(body)))
            if not self._requests.submit(number, request, len(body)):
                self._refuse(number, UnreachableError("too many requests wait already"))
        elif call := self._calls.pending.pop(number, None):
            if kind == ANSWER:
                self.counters.responses_received += 1
                call.answer(body)
            else:
                self.counters.errors_received += 1
                code, name, data = body.split(b" ", 2)
                call.fail(RemoteError(code.decode(), name.decode(), data=data))

    # Frames out. The queue has room for every call in flight and every reply: nobody has to wait for it.

    def _put(self, kind: int, number: int, body: bytes) -> None:
        self._send_frame.send_nowait(HEAD.pack(kind, number, len(body)) + body)

    def _refuse(self, number: int, error: LedgerPluginError) -> None:
        code, name, data = told_to_peer(error)
        self.counters.errors_sent += 1
        self._put(ERROR, number, f"{code} {name} ".encode() + data)

    async def reply(self, number: int, reply: bytes | LedgerPluginError | None) -> None:
        """Send what a handler has answered: bytes, an error, or None for a transfer that was taken."""
        if isinstance(reply, bytes) and len(reply) > self.options.max_data_bytes:
            reply = self.response_too_long(reply)
        if isinstance(reply, LedgerPluginError):
            self._refuse(number, reply)
        else:
            self.counters.responses_sent += 1
            self._put(ANSWER, number, reply or b"")

    def expire(self, number: int) -> None:
        """Answer for a handler that is past its deadline."""
        self._refuse(number, UnreachableError("the handler took too long"))

    async def _ask(self, kind: int, body: bytes) -> bytes:
        self.counters.requests_sent += 1
        call, number = self._calls.new_call(), next(self._ids)
        self._calls.pending[number] = call
        self._put(kind, number, body)
        return await self._calls.outcome(number, call)

    async def _wait_for_turn(self) -> None:
        await self._calls.wait_for_slot()
        self._calls.check_open()

    async def carry_data(self, data: bytes) -> bytes:
        await self._wait_for_turn()
        return await self._ask(DATA, data)

    async def carry_money(self, transfer: Transfer) -> None:
        assert transfer.key is not None
        await self._wait_for_turn()
        try:
            await self._ask(MONEY, transfer.amount.encode())
        except IN_DOUBT as error:
            raise TransferInDoubtError(transfer.key, transfer.amount, str(error)) from error

    # What the base class asks of every plugin.

    def sweep(self, now: float) -> float:
        return self._calls.expire(now)

    def fail_calls(self, make_error: Callable[[], LedgerPluginError]) -> None:
        self._calls.close(make_error)

    def calls_in_flight(self) -> int:
        return len(self._calls.pending)

    async def finish_calls(self) -> None:
        await self._calls.drain()
