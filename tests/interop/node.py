"""Real JavaScript packages as the other end: one Node process a peer, driven by JSON lines (see json_lines.js).

The process of :func:`open_node` never outlives the block, and every wait in this module has a deadline.
Node's stderr goes to the tests' own, where pytest shows it with a failure.
"""

import fcntl
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import trio

HERE = Path(__file__).parent
REPLY_DEADLINE = 10.0
BLOCK_DEADLINE = 20.0
EXIT_DEADLINE = 2.0
INSTALL_DEADLINE = 300.0


class PackagesUnavailableError(Exception):
    """Node, npm or the packages cannot be had on this machine; the text says which and why."""


class NodePeerGoneError(Exception):
    """The Node process ended, or closed its output, before it replied."""


class NodeCallError(Exception):
    """A command failed in Node; with a ``code`` when it is the BTP error that our side answered with."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(dict(error))
        self.message: str = error["message"]
        self.code: str | None = error.get("code")
        self.name: str | None = error.get("name")
        self.data: str = error.get("data") or ""
        told = error.get("triggeredAt")
        self.triggered_at = datetime.fromisoformat(told) if told else None


def install_packages() -> None:
    """Install what package-lock.json pins, unless this checkout has it already."""
    missing = [tool for tool in ("node", "npm") if shutil.which(tool) is None]
    if missing:
        raise PackagesUnavailableError(f"not installed: {' and '.join(missing)}")
    pinned = HERE / "package-lock.json"
    with pinned.open() as file:
        # The tests may run in several processes, and one of them installs.
        fcntl.flock(file, fcntl.LOCK_EX)
        installed = HERE / "node_modules" / ".package-lock.json"
        if not installed.exists() or installed.stat().st_mtime < pinned.stat().st_mtime:
            _run_npm()


def _run_npm() -> None:
    try:
        npm = subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=HERE,
            capture_output=True,
            text=True,
            timeout=INSTALL_DEADLINE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PackagesUnavailableError(f"npm ci did not end within {INSTALL_DEADLINE:.0f} s") from error
    if npm.returncode != 0:
        raise PackagesUnavailableError(f"npm ci failed:\n{npm.stderr}")


@asynccontextmanager
async def open_node(kind: "type[Peer]") -> "AsyncIterator[Peer]":
    """Start a Node process that waits for commands; end it with the block."""
    preloads = [option for script in kind.preloads for option in ("-r", str(HERE / script))]
    process = await trio.lowlevel.open_process(
        ["node", *preloads, str(HERE / kind.script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    peer = kind(process)
    try:
        with trio.fail_after(BLOCK_DEADLINE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.run_reader)
                await peer.expect("ready")
                yield peer
                nursery.cancel_scope.cancel()
    finally:
        await _end(process)


def open_node_peer() -> AbstractAsyncContextManager["NodePeer"]:
    """Start a Node process with an ilp-plugin-btp."""
    return open_node(NodePeer)


async def _end(process: trio.Process) -> None:
    """Close stdin, which ends a healthy peer; kill one that does not take the hint."""
    assert process.stdin is not None
    assert process.stdout is not None
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 2 * EXIT_DEADLINE):
        await process.stdin.aclose()
        with trio.move_on_after(EXIT_DEADLINE):
            await process.wait()
        process.kill()
        await process.wait()
        await process.stdout.aclose()


class NodeProcess:
    """One of the scripts in this directory in a Node process of its own.

    Attributes:
        script: The script.
        preloads: The scripts that run before it.
    """

    script: ClassVar[str]
    preloads: ClassVar[tuple[str, ...]] = ()

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._sending = trio.Lock()
        self._last_id = 0
        self._replies: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._events_in, self._events = trio.open_memory_channel[str](float("inf"))

    async def expect(self, event: str, count: int = 1) -> None:
        """Wait for the next events and demand that each is this one."""
        with trio.fail_after(REPLY_DEADLINE):
            for _ in range(count):
                try:
                    came = await self._events.receive()
                except trio.EndOfChannel:
                    raise NodePeerGoneError(f"waiting for {event!r}") from None
                assert came == event

    async def kill(self) -> None:
        """End the process by SIGKILL: the kernel closes its sockets, no one says goodbye.

        Returns once the process is gone: until then its listening socket may outlive the connections and keep the port.
        """
        self._process.kill()
        with trio.fail_after(EXIT_DEADLINE):
            await self._process.wait()

    async def run_reader(self) -> None:
        """Hand every line that Node writes to the one who waits for it, until it writes no more."""
        assert self._process.stdout is not None
        rest = b""
        with self._events_in:
            async for chunk in self._process.stdout:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._deliver(json.loads(line))
        for reply in self._replies.values():
            reply.close()

    def _deliver(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._events_in.send_nowait(message["event"])
        elif message["id"] in self._replies:  # else: its caller was cancelled
            self._replies[message["id"]].send_nowait(message)

    async def do(self, command: str, **options: object) -> dict[str, Any]:
        """Have the process run one of its commands; returns what it tells."""
        assert self._process.stdin is not None
        self._last_id += 1
        number = self._last_id
        self._replies[number], reply = trio.open_memory_channel[dict[str, Any]](1)
        try:
            with trio.fail_after(REPLY_DEADLINE):
                async with self._sending:
                    await self._process.stdin.send_all(
                        json.dumps({"id": number, "do": command, **options}).encode() + b"\n"
                    )
                message = await reply.receive()
        except (trio.EndOfChannel, trio.BrokenResourceError):
            raise NodePeerGoneError(f"during {command!r}") from None
        finally:
            del self._replies[number]
        if "error" in message:
            raise NodeCallError(message["error"])
        ok: dict[str, Any] = message["ok"]
        return ok


Peer = TypeVar("Peer", bound=NodeProcess)


class NodePeer(NodeProcess):
    """One ilp-plugin-btp in a Node process of its own."""

    script = "btp_peer.js"

    async def listen(self, token: str, *, port: int = 0, settlement: bool = True) -> int:
        """Open a server on the loopback interface; returns its port once it is bound."""
        reply = await self.do("listen", token=token, port=port, settlement=settlement)
        return int(reply["port"])

    async def connect(self, url: str, *, settlement: bool = True) -> None:
        """Dial a ``btp+ws://`` URL; returns once authenticated."""
        await self.do("connect", url=url, settlement=settlement)

    async def disconnect(self) -> None:
        await self.do("disconnect")

    async def handle_data(self, kind: str, **options: str) -> None:
        """Set the data handler: none, echo, reverse, callback, silent, or throw (with ``name`` and ``message``)."""
        await self.do("handleData", kind=kind, **options)

    async def handle_money(self, kind: str, **options: str) -> None:
        """Set what happens before a transfer is credited: none, silent, or throw."""
        await self.do("handleMoney", kind=kind, **options)

    async def send_data(self, data: bytes) -> bytes:
        reply = await self.do("sendData", hex=data.hex())
        return bytes.fromhex(reply["hex"])

    async def send_many(self, count: int, size: int) -> int:
        """Send so many different requests at once; returns how many came back reversed, as they must."""
        reply = await self.do("sendMany", count=count, size=size)
        return int(reply["matched"])

    async def send_money(self, amount: str) -> None:
        await self.do("sendMoney", amount=amount)

    async def stats(self) -> dict[str, Any]:
        """Tell ``handled`` (data requests), ``connected``, ``received`` (decimal text) and ``transfers``."""
        return await self.do("stats")
