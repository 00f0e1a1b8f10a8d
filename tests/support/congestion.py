"""Two payments that share one simulated path, and what each delivers in each second."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from attrs import field, frozen

from trio_ledger_plugin.stream import pay

from .stream_paths import Path, open_path, open_payer

if TYPE_CHECKING:
    from trio_ledger_plugin import LedgerPlugin
    from trio_ledger_plugin.stream import Progress, Receiver

__all__ = ["Shares", "share_path"]

UNITS = 1000


@frozen
class Shares:
    """What became of the payments.

    Attributes:
        first: How many packets of the first payment were fulfilled in each second.
        second: The same of the second payment.
        refused: How many packets the connector refused.
    """

    first: dict[int, int] = field(factory=dict)
    second: dict[int, int] = field(factory=dict)
    refused: int = 0

    def together(self) -> list[tuple[int, int]]:
        """Return what each had in the seconds during which both were paying."""
        whole = sorted(self.second)[1:-1]
        return [(self.first.get(second, 0), self.second[second]) for second in whole if second < max(self.first)]


async def share_path(per_second: int, packets: tuple[int, int], later: float) -> Shares:
    """Make two payments over a connector with a limit of packets a second (T05).

    Args:
        per_second: The limit.
        packets: How many packets each payment has.
        later: How many seconds after the first payment the second begins.
    """
    path = Path(per_second=per_second)
    began = trio.current_time()
    shares = Shares()

    async def run(plugin: LedgerPlugin, receiver: Receiver, count: int, fulfilled: dict[int, int]) -> None:
        seen = 0

        def look(progress: Progress) -> None:
            nonlocal seen
            second = int(trio.current_time() - began)
            fulfilled[second] = fulfilled.get(second, 0) + progress.packets - seen
            seen = progress.packets

        await pay(plugin, receiver.new_credentials(), send=count * UNITS, max_packet=UNITS, on_progress=look)

    async with open_path(path) as ends, open_payer(path, ends.onward) as (other, _), trio.open_nursery() as nursery:
        nursery.start_soon(run, ends.payer, ends.receiver, packets[0], shares.first)
        await trio.sleep(later)
        nursery.start_soon(run, other, ends.receiver, packets[1], shares.second)
    return Shares(shares.first, shares.second, path.rejected.count("T05"))
