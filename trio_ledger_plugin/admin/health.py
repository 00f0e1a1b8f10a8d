"""Whether plugins do their work, and if not, why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from attrs import define, field

from .pace import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .watched import Watched

__all__ = ["Health", "check_health"]


@define
class Health:
    """What is wrong.

    Attributes:
        reasons: Why a plugin does not work.
        warnings: What an operator should look at; the plugins work.
    """

    reasons: list[str] = field(factory=list)
    warnings: list[str] = field(factory=list)

    @property
    def status(self) -> int:
        """The status of an HTTP response: 200, or 503 if a plugin does not work."""
        return 503 if self.reasons else 200

    def as_json(self) -> dict[str, object]:
        """Return it as JSON."""
        return {
            "status": "failing" if self.reasons else "ok",
            "reasons": self.reasons,
            "warnings": self.warnings,
        }


async def check_health(plugins: Sequence[Watched], at_most: float = PATIENCE) -> Health:
    """Check plugins and their stores.

    Args:
        plugins: The plugins.
        at_most: For how many seconds stores are waited for; what was seen last counts then.

    Cancellation: Safe at any time.
    """
    health = Health()
    deadline = trio.current_time() + at_most
    for watched in plugins:
        # All at once: several stores that hang, as on one disk, take no longer than one.
        watched.money.looks.ask()
    for watched in plugins:
        await _check(watched, health, deadline)
    return health


async def _check(watched: Watched, health: Health, deadline: float) -> None:
    name = watched.name
    end = watched.find_end()
    if end:
        health.reasons.append(f"{name}: {end}")
        return
    if not watched.plugin.is_connected():
        if watched.waits_for_client:
            health.warnings.append(f"{name}: no client is connected")
        else:
            health.reasons.append(f"{name}: not connected")
    await watched.money.looks.wait(max(0.0, deadline - trio.current_time()))
    money = watched.money.seen
    if watched.money.has_failed:
        health.reasons.append(f"{name}: the store fails or does not answer; the log says why")
    elif money is None and watched.money.transfers is not None:
        # Only who does not wait for the first look sees this.
        health.warnings.append(f"{name}: the store has not answered yet")
    elif money is not None and money.count:
        are = "transfer is" if money.count == 1 else "transfers are"
        health.warnings.append(f"{name}: {money.count} {are} in doubt")
