"""Stdout of a server, written in a thread: a consumer that stops reading loses lines, and the server goes on.

Invariant: Trio's thread never waits for stdout. What waits to be written is bounded; what exceeds the bound, or cannot
be written now, is dropped and counted, and the count is written before the next line.
"""

from __future__ import annotations

import os
import select
import sys
from contextlib import asynccontextmanager
from io import UnsupportedOperation
from typing import TYPE_CHECKING, Final, TextIO, cast

import trio

from ..parking import Waiter, park
from ..runtime.tasks import without_cancellation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["BackgroundStdout", "open_stdout"]

# How much text may wait to be written, in characters.
MOST_WAITING: Final = 1024 * 1024
# How long the end of the program waits for a consumer that reads slowly, in seconds.
FLUSH_SECONDS: Final = 0.4
# The pause after a write that failed, as on a full disk, in seconds.
FAILED_SECONDS: Final = 1.0


@asynccontextmanager
async def open_stdout(report_lost: Callable[[int], str]) -> AsyncIterator[TextIO]:
    """Yield a file for stdout that never makes its writer wait.

    Args:
        report_lost: Returns the line that reports a number of lost lines.

    Raises:
        BrokenPipeError: The consumer has closed stdout. The block is cancelled.

    Cancellation: What waits to be written has a moment to be written.
    """
    stdout = BackgroundStdout(sys.stdout, report_lost)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stdout.run)
            try:
                yield cast("TextIO", stdout)
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + FLUSH_SECONDS):
                    await stdout.drain()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error = without_cancellation(group)
        if error is None:
            raise
        raise error from error.__cause__


class BackgroundStdout:
    """Text that a task hands over to a thread; as much of a text file as Click and Rich use.

    Args:
        stream: The file to write to.
        report_lost: Returns the line that reports a number of lost lines.
    """

    def __init__(self, stream: TextIO, report_lost: Callable[[int], str]) -> None:
        self._stream = stream
        self._report_lost = report_lost
        self._waiting: list[str] = []
        self._size = 0
        self._lost = 0
        # How many of them the text reports that is being written.
        self._reported = 0
        # Whether the last write has failed within a line.
        self._is_torn = False
        self._sleep = Waiter()
        self._drained = trio.Event()
        self.encoding: str = stream.encoding
        self.errors: str | None = stream.errors

    def isatty(self) -> bool:
        """Return whether stdout is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the descriptor of stdout."""
        return self._stream.fileno()

    def flush(self) -> None:
        """Do nothing: what was written is on its way already."""

    def write(self, text: str) -> int:
        """Queue text, or drop it and count its lines if too much waits already."""
        if self._lost and self._size == 0:
            self._reported, self._lost = self._lost, 0
            text = f"{self._report_lost(self._reported)}\n{text}"
        if self._size + len(text) > MOST_WAITING:
            self._lost += max(1, text.count("\n"))
        else:
            self._waiting.append(text)
            self._size += len(text)
            self._sleep.wake()
        return len(text)

    async def run(self) -> None:
        """Write what is queued until cancelled.

        What cannot be written now, as on a full disk, is lost.

        Raises:
            BrokenPipeError: The consumer has closed stdout.

        Cancellation: A write that hangs is left to its thread, which ends with the process.
        """
        while True:
            while self._waiting:
                text = "".join(self._waiting)
                self._waiting.clear()
                try:
                    await trio.to_thread.run_sync(self._write, text, abandon_on_cancel=True)
                except BrokenPipeError:
                    raise
                except (OSError, RuntimeError):
                    # The disk is full, or the system has no thread now. A line that reports lost ones does not count.
                    self._lost += max(1, text.count("\n") - bool(self._reported)) + self._reported
                    await trio.sleep(FAILED_SECONDS)
                self._reported = 0
                self._size -= len(text)
            self._drained.set()
            self._drained = trio.Event()
            await park(self._sleep)

    async def drain(self) -> None:
        """Wait until everything is written.

        Cancellation: Safe at any time.
        """
        while self._size:
            await self._drained.wait()

    def _write(self, text: str) -> None:
        """Write to the descriptor itself if there is one: a thread that hangs here must not hold a lock of the file.

        Otherwise the interpreter could not end, since it flushes the file then.
        """
        descriptor = _descriptor_of(self._stream)
        if descriptor is None:
            self._stream.write(text)
            self._stream.flush()
            return
        data = text.encode(self.encoding, self.errors or "strict")
        if self._is_torn:
            data = b"\n" + data
        while data:
            try:
                written = os.write(descriptor, data)
            except BlockingIOError:
                # Another program that shares the pipe or the terminal has set this for all.
                _wait_writable(descriptor)
                continue
            # It counts only if a further write fails: live lines end without a new line.
            self._is_torn = not data[:written].endswith(b"\n")
            data = data[written:]
        self._is_torn = False


def _wait_writable(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()


def _descriptor_of(stream: TextIO) -> int | None:
    if os.name != "posix":
        return None
    try:
        return stream.fileno()
    except (UnsupportedOperation, AttributeError):
        return None
