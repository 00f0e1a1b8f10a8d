"""Stdout of a server: a consumer that stops reading loses lines, and nothing else."""

import errno
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO
from typing import Any, TextIO

import pytest
import trio

from trio_ledger_plugin.cli import background
from trio_ledger_plugin.cli.background import open_stdout

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no pipes that can be polled")


@asynccontextmanager
async def piped(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[TextIO, int]]:
    """Give a background stdout that writes to a pipe, and the pipe's other end."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        try:
            async with open_stdout(lambda count: f"{count} lost") as out:
                yield out, reading
        finally:
            os.close(reading)


async def read_lines(reading: int, last: str) -> list[str]:
    """Read until a line comes."""
    data = b""
    while not data.endswith(f"{last}\n".encode()):
        data += await trio.to_thread.run_sync(os.read, reading, 1 << 16)
    return data.decode().splitlines()


async def test_lines_are_written_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    async with piped(monkeypatch) as (out, reading):
        for number in range(1000):
            out.write(f"line {number} é\n")
        assert await read_lines(reading, "line 999 é") == [f"line {number} é" for number in range(1000)]


async def test_nothing_is_added_behind_a_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A live line ends without a new line. With one, the terminal would show each of its versions."""
    async with piped(monkeypatch) as (out, reading):
        for piece in ("one", "\rtwo", "\rthree\n"):
            out.write(piece)
            assert await trio.to_thread.run_sync(os.read, reading, 1 << 16) == piece.encode()


async def test_consumer_that_stops_reading_loses_counted_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the whole server would stand still: no answers, no pings, no money, no Ctrl-C."""
    line = "x" * 99 + "\n"
    async with piped(monkeypatch) as (out, reading):
        with trio.fail_after(5):
            for _ in range(300):
                for _ in range(100):
                    out.write(line)
                await trio.lowlevel.checkpoint()
        pending: list[str] = []
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                pending.extend(await read_lines(reading, "the end"))

            nursery.start_soon(read)
            with trio.fail_after(5):
                while out._size:  # type: ignore[attr-defined]  # noqa: ASYNC110 (there is no event for it)
                    await trio.sleep(0.01)
            out.write("the end\n")
        kept = pending.count(line.strip())
        assert pending[kept:] == [f"{30_000 - kept} lost", "the end"]
        assert 10_000 < kept < 20_000


async def test_end_does_not_wait_for_a_consumer_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    start = trio.current_time()
    async with piped(monkeypatch) as (out, _):
        out.write("x" * 1_000_000)
    assert background.FLUSH_SECONDS <= trio.current_time() - start < 3


async def test_closed_pipe_ends_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(BrokenPipeError):
            await write_for_ever()


async def test_error_of_the_block_keeps_its_cause() -> None:
    """What a command advises depends on the cause."""
    with pytest.raises(ValueError, match="effect") as caught:
        await fail()
    assert isinstance(caught.value.__cause__, OSError)


async def fail() -> None:
    async with open_stdout(str):
        raise ValueError("effect") from OSError("cause")


async def write_for_ever() -> None:
    async with open_stdout(str) as out:
        out.write("nobody reads this\n")
        await trio.sleep_forever()


async def test_file_without_a_descriptor_is_written_too(monkeypatch: pytest.MonkeyPatch) -> None:
    text: Any = StringIO()
    monkeypatch.setattr(sys, "stdout", text)
    async with open_stdout(str) as out:
        out.write("a line\n")
    assert text.getvalue() == "a line\n"


async def test_pipe_that_another_program_made_non_blocking_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """All who share it share that setting; the server would end for it."""
    async with piped(monkeypatch) as (out, reading):
        os.set_blocking(sys.stdout.fileno(), False)
        for number in range(20_000):
            out.write(f"line {number}\n")
        assert await read_lines(reading, "line 19999") == [f"line {number}" for number in range(20_000)]


async def test_full_disk_loses_counted_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that moves money must not end because its log file cannot grow."""
    write, left = os.write, [7, 0, 0]

    def write_until_full(descriptor: int, data: bytes) -> int:
        if descriptor != sys.stdout.fileno() or not left:
            return write(descriptor, data)
        room = left.pop(0)
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:room])

    monkeypatch.setattr(background, "FAILED_SECONDS", 0.01)
    async with piped(monkeypatch) as (out, reading):
        monkeypatch.setattr(os, "write", write_until_full)
        for text in ("one\ntwo\nthree\n", "four\n", "five\n"):
            out.write(text)
            with trio.fail_after(5):
                while out._size:  # type: ignore[attr-defined]  # noqa: ASYNC110 (there is no event for it)
                    await trio.sleep(0.01)
        assert await read_lines(reading, "five") == ["one", "two", "4 lost", "five"]
