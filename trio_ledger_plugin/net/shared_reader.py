"""One task that reads the sockets of a server's many clients.

The law of this module: a task that waits here is woken when its socket has ended, broken or been closed, and for bytes
that its own function does not take whole; for all other bytes it sleeps on. To wake a task for each message of each of
a thousand clients costs more than all else that is done for a message.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, TypeAlias

import outcome
import trio

from ..parking import Waiter, park

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..runtime.tasks import TaskGroup

    Take: TypeAlias = Callable[[bytes], bool]

__all__ = ["READ_BYTES", "SocketReaders", "can_share"]

READ_BYTES = 65536
# From so many lanes on one task reads for all.
CROWD = 32


def can_share() -> bool:
    """Return whether the system can tell of many sockets at once which of them have bytes."""
    return hasattr(select, "epoll")


class _Reading(Waiter):
    """One task that waits for a socket's bytes, and the function that takes them in its place."""

    __slots__ = ("_number", "_readers", "take")

    def __init__(self, readers: SocketReaders, number: int, take: Take) -> None:
        super().__init__()
        self._readers = readers
        self._number = number
        self.take: Take = take

    def abandon(self, raise_cancel: object) -> trio.lowlevel.Abort:
        # At once: the socket may be closed before the task runs again.
        self._readers.forget(self._number, self)
        return super().abandon(raise_cancel)


class SocketReaders:
    """Reads for the tasks that wait for a socket's bytes.

    Whoever closes a socket calls ``closing`` first.

    Args:
        tasks: Owns the task that reads.
    """

    def __init__(self, tasks: TaskGroup) -> None:
        self._tasks = tasks
        # The open ones, whoever reads for them now.
        self.lanes: int = 0
        self._poll: select.epoll | None = None
        self._waiting: dict[int, _Reading] = {}

    @property
    def crowded(self) -> bool:
        """Whether there are so many lanes that reading for them all costs less; a lone call takes longer by it."""
        return self.lanes >= CROWD

    async def read(self, socket: trio.socket.SocketType, take: Take) -> bytes:
        """Wait for a socket's bytes, and give them to ``take`` as they come, ``READ_BYTES`` at most at a time.

        Args:
            socket: The socket, which nobody else reads.
            take: Takes bytes and returns whether to go on; may not wait. What it raises is raised here.

        Returns:
            The bytes that ``take`` took last, or none at the socket's end.

        Raises:
            trio.BrokenResourceError: The connection broke.
            trio.ClosedResourceError: The socket was closed from this side.

        Cancellation: Nothing is read.
        """
        number = socket.fileno()
        if number < 0:
            raise trio.ClosedResourceError("the socket was closed")
        if self._poll is None:
            self._poll = select.epoll()
            self._tasks.spawn(self._run, self._poll)
        self._poll.register(number, select.EPOLLIN)
        reading = self._waiting[number] = _Reading(self, number, take)
        try:
            data: bytes = await park(reading)
            return data
        finally:
            # Only Ctrl-C comes here with the socket still watched.
            self.forget(number, reading)

    def closing(self, socket: trio.socket.SocketType) -> None:
        """Wake the task that waits for a socket, if one does: the socket is about to be closed."""
        self._wake(socket.fileno(), outcome.Error(trio.ClosedResourceError("the socket was closed")))

    async def _run(self, poll: select.epoll) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(poll.fileno())
                for number, _ in poll.poll(0, max(1, len(self._waiting))):
                    self._read(number)
        finally:
            # Those who wait are tasks of the same home, and are cancelled with this one.
            self._poll = None
            poll.close()

    def _read(self, number: int) -> None:
        if number not in self._waiting:
            # What another one took has closed it meanwhile.
            return
        try:
            data = os.read(number, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._wake(number, outcome.Error(trio.BrokenResourceError(f"the socket broke: {error}")))
            return
        try:
            taken = bool(data) and self._waiting[number].take(data)
        except Exception as error:  # noqa: BLE001 (one connection's trouble, such as a host's log, must not end all)
            self._wake(number, outcome.Error(error))
        else:
            if not taken:
                self._wake(number, outcome.Value(data))

    def _wake(self, number: int, result: outcome.Outcome[bytes]) -> None:
        reading = self._waiting.get(number)
        if reading is not None:
            self.forget(number, reading)
            reading.wake(result)

    def forget(self, number: int, reading: _Reading) -> None:
        """Watch a socket no longer; another may have its number by now."""
        if self._waiting.get(number) is reading:
            del self._waiting[number]
            if self._poll is not None:
                self._poll.unregister(number)
