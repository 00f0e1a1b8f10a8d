"""One task that reads the sockets of a server's many clients.

Invariant: a task that waits here wakes when its socket has ended, broken or been closed, or when its function asks for
that. For all other bytes, the shared task calls the function and the waiting task sleeps on. With a thousand clients,
to wake a task for each message costs more than all the rest of the work on a message.

Turns go round by account, then by socket: an account with many busy sockets delays others no more than one with a
single socket. The task lets other tasks run after each round, and after each millisecond of work.
"""

from __future__ import annotations

import os
import select
from collections import OrderedDict, deque
from time import perf_counter
from typing import TYPE_CHECKING, TypeAlias

import outcome
import trio

from ..parking import Waiter, park
from .sockets import read_socket

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..runtime.tasks import TaskGroup

    Handle: TypeAlias = Callable[[bytes], bool]

__all__ = ["READ_BYTES", "SocketReaders", "can_share"]

READ_BYTES = 65536
# With at least this many open frame streams, one task reads for all.
SHARED_FROM = 32
# How many messages the sockets of an account may bring in one turn.
TURN_MESSAGES = 16
# For how long the task works before other tasks run, in seconds.
WORK_SECONDS = 0.001
# How many ready sockets are asked for at a time.
LOOK_FOR = 256
# Edge-triggered: the system reports a socket once for all bytes that have come, instead of each time until they are
# read. The end of a connection is asked for as well: it may come with the last bytes, and is not reported again.
WATCHED = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET if hasattr(select, "epoll") else 0


def can_share() -> bool:
    """Return whether the system has epoll, which watches many sockets at once."""
    return hasattr(select, "epoll")


class _Reading(Waiter):
    """One task that waits for a socket's bytes, and the function that handles them in the shared task."""

    __slots__ = ("_number", "_readers", "ending", "handle", "turns")

    def __init__(self, readers: SocketReaders, number: int, handle: Handle, turns: object) -> None:
        super().__init__()
        self._readers = readers
        self._number = number
        self.handle: Handle = handle
        self.turns: object = turns
        # Whether the socket ends behind the bytes that are there.
        self.ending: bool = False

    def abandon(self, raise_cancel: object) -> trio.lowlevel.Abort:
        # Done here, not in the task: the socket may be closed before the task runs again.
        self._readers.forget(self._number, self)
        return super().abandon(raise_cancel)


class SocketReaders:
    """Reads for the tasks that wait for a socket's bytes.

    The owner of a socket calls ``closing`` before it closes the socket.

    Args:
        tasks: Owns the task that reads.
    """

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        # The open frame streams, which count themselves here; each may still read its own socket.
        self.streams: int = 0
        # The messages that functions have taken; each counts its own here.
        self.messages: int = 0
        self._poll: select.epoll | None = None
        self._waiting: dict[int, _Reading] = {}

    @property
    def reads_for_all(self) -> bool:
        """Whether so many streams are open that the shared task costs less; a single call takes longer with it."""
        return self.streams >= SHARED_FROM

    async def read(self, socket: trio.socket.SocketType, handle: Handle, turns: object) -> bytes:
        """Call ``handle`` with a socket's bytes as they arrive, with at most ``READ_BYTES`` at a time.

        Args:
            socket: The socket, which no other task reads.
            handle: Handles bytes and returns whether to continue. It must not wait. Its errors are raised here.
            turns: Stands for the account; the sockets of one account take turns together.

        Returns:
            The bytes of the last call of ``handle``; empty at the end of the socket.

        Raises:
            trio.BrokenResourceError: The connection broke.
            trio.ClosedResourceError: The socket was closed from this side.

        Cancellation: Nothing is read.
        """
        number = socket.fileno()
        if number < 0:
            raise trio.ClosedResourceError("the socket was closed")
        try:
            if self._poll is None:
                poll = select.epoll()
                self._tasks.spawn(self._run, poll)
                self._poll = poll
            self._poll.register(number, WATCHED)
        except OSError:
            # There is no descriptor or no memory for it now.
            return await _read_alone(socket, handle)
        reading = self._waiting[number] = _Reading(self, number, handle, turns)
        try:
            data: bytes = await park(reading)
            return data
        finally:
            # The socket is still watched only after Ctrl-C.
            self.forget(number, reading)

    def closing(self, socket: trio.socket.SocketType) -> None:
        """Wake the task that waits for a socket, if one does: the socket is about to be closed."""
        self._wake(socket.fileno(), outcome.Error(trio.ClosedResourceError("the socket was closed")))

    async def _run(self, poll: select.epoll) -> None:
        # The sockets with bytes, by account; the account whose turn is next comes first.
        ready: OrderedDict[object, deque[int]] = OrderedDict()
        queued: set[int] = set()
        try:
            while True:
                if ready:
                    await trio.lowlevel.checkpoint()
                else:
                    await trio.lowlevel.wait_readable(poll.fileno())
                for number, events in poll.poll(0, LOOK_FOR):
                    reading = self._waiting.get(number)
                    if reading is None:
                        continue
                    if events != select.EPOLLIN:
                        reading.ending = True
                    if number not in queued:
                        queued.add(number)
                        numbers = ready.get(reading.turns)
                        if numbers is None:
                            ready[reading.turns] = deque((number,))
                        else:
                            numbers.append(number)
                self._read_round(ready, queued)
        finally:
            # The waiting tasks belong to the same task group and are cancelled with this one.
            self._poll = None
            poll.close()

    def _read_round(self, ready: OrderedDict[object, deque[int]], queued: set[int]) -> None:
        """Give each account that has a socket with bytes one turn, for at most a millisecond altogether."""
        until = perf_counter() + WORK_SECONDS
        for _ in range(len(ready)):
            turns, numbers = ready.popitem(last=False)
            most = self.messages + TURN_MESSAGES
            while numbers and self.messages < most:
                number = numbers.popleft()
                queued.discard(number)
                reading = self._waiting.get(number)
                # The bytes of another socket, handled before in this round, may have led to the end of this one.
                if reading is not None:
                    self._read(number, reading)
            if numbers:
                # Behind the others.
                ready[turns] = numbers
            if perf_counter() > until:
                return

    def _read(self, number: int, reading: _Reading) -> None:
        try:
            data = os.read(number, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._wake(number, outcome.Error(trio.BrokenResourceError(f"the socket broke: {error}")))
            return
        try:
            proceed = bool(data) and reading.handle(data)
        except Exception as error:  # noqa: BLE001 (an error of one connection must not end the others)
            self._wake(number, outcome.Error(error))
        else:
            if not proceed:
                self._wake(number, outcome.Value(data))
            elif (reading.ending or len(data) == READ_BYTES) and self._waiting.get(number) is reading:
                # What is left was reported already; to modify the socket makes the system report it again.
                assert self._poll is not None
                self._poll.modify(number, WATCHED)

    def _wake(self, number: int, result: outcome.Outcome[bytes]) -> None:
        reading = self._waiting.get(number)
        if reading is not None:
            self.forget(number, reading)
            reading.wake(result)

    def forget(self, number: int, reading: _Reading) -> None:
        """Stop watching a socket, unless another task waits for the same number by now."""
        if self._waiting.get(number) is reading:
            del self._waiting[number]
            if self._poll is not None:
                self._poll.unregister(number)


async def _read_alone(socket: trio.socket.SocketType, handle: Handle) -> bytes:
    """Do what ``SocketReaders.read`` does, without the shared task."""
    while (data := await read_socket(socket, READ_BYTES)) and handle(data):
        pass
    return data
