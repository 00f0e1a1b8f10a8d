"""Faults of a connection: by hand, by a schedule, or at random from a seed.

Invariant: the faults of a connection depend only on its number and its bytes, never on the order in which a test's
tasks run, so a seed always gives the same faults.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from math import inf
from random import Random
from typing import Final, TypeAlias

from attrs import field, frozen

__all__ = ["Direction", "Fault", "FaultKind", "Faults", "RandomFaults", "as_seed"]

# The largest piece and the largest range of bytes of a random fault.
MOST_RANDOM_BYTES: Final = 64


class Direction(Enum):
    """Which way bytes go.

    Attributes:
        TO_TARGET: From the end that connected to the target.
        FROM_TARGET: Back.
    """

    TO_TARGET = "to_target"
    FROM_TARGET = "from_target"


class FaultKind(Enum):
    """What can happen to a connection.

    Attributes:
        CUT: Both sides are closed.
        RESET: Both sides are closed with a TCP reset, where they are sockets.
        STALL: Nothing is passed on for ``seconds``; bytes that arrive meanwhile are passed on afterwards.
        DELAY: From here on, bytes are held for ``seconds`` before they are passed on.
        SLICE: From here on, bytes are passed on in pieces of ``size``.
        DROP: The next ``size`` bytes are not passed on.
        DUPLICATE: The next ``size`` bytes are passed on twice.
    """

    CUT = "cut"
    RESET = "reset"
    STALL = "stall"
    DELAY = "delay"
    SLICE = "slice"
    DROP = "drop"
    DUPLICATE = "duplicate"


@frozen
class Fault:
    """One fault of a schedule: either after so many bytes or after so much time.

    Attributes:
        kind: What happens.
        direction: The direction of the fault, whose bytes ``at_byte`` counts. A cut and a reset end both directions.
        at_byte: The fault happens after this many bytes; 0 is before the first.
        after: The fault happens this many seconds after the connection opened.
        connection: The number of the connection, counted from 0; None means every connection.
        size: The size of slices, or how many bytes are dropped or duplicated.
        seconds: How long a stall or a delay lasts; a stall of ``math.inf`` ends with ``resume()``.

    Raises:
        ValueError: Not exactly one of ``at_byte`` and ``after`` is given, or a number is out of range.
    """

    kind: FaultKind
    direction: Direction = Direction.TO_TARGET
    at_byte: int | None = field(default=None, kw_only=True)
    after: float | None = field(default=None, kw_only=True)
    connection: int | None = field(default=None, kw_only=True)
    size: int = field(default=1, kw_only=True)
    seconds: float = field(default=inf, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if (self.at_byte is None) == (self.after is None):
            raise ValueError("a fault needs either at_byte or after")
        if min(self.at_byte or 0, self.after or 0.0, self.connection or 0, self.seconds) < 0 or self.size < 1:
            raise ValueError("a fault's numbers are not negative, and its size is 1 at least")
        if self.kind is FaultKind.DELAY and self.seconds == inf:
            raise ValueError("a delay needs its seconds; what lasts until resume() is a stall")


def as_seed(seed: int | None) -> int:
    """Return a seed; a new one for None."""
    return Random().getrandbits(32) if seed is None else seed  # noqa: S311 (no secret)


@frozen(kw_only=True)
class RandomFaults:
    """Faults at random: the same seed gives the n-th connection the same faults at the same bytes.

    Attributes:
        seed: The seed of the random numbers; None takes a new one.
        mean_bytes: How many bytes pass in a direction between two faults, on average.
        kinds: The kinds of faults. By default those of networks, which do not drop or duplicate bytes in a connection.
        max_seconds: The longest stall or delay.

    Raises:
        ValueError: A number is out of range, or there are no kinds.
    """

    seed: int = field(default=None, converter=as_seed)
    mean_bytes: float = 64 * 1024
    kinds: tuple[FaultKind, ...] = (
        FaultKind.CUT,
        FaultKind.RESET,
        FaultKind.STALL,
        FaultKind.DELAY,
        FaultKind.SLICE,
    )
    max_seconds: float = 0.1

    def __attrs_post_init__(self) -> None:
        if self.mean_bytes < 1 or not 0 <= self.max_seconds < inf or not self.kinds:
            raise ValueError("mean_bytes is 1 at least, max_seconds is finite, and one kind is needed")

    def draw(self, connection: int, direction: Direction) -> Iterator[Fault]:
        """Yield the faults of one direction of a connection in order, without end."""
        random = Random(f"{self.seed}/{connection}/{direction.value}")  # noqa: S311 (must be repeatable)
        at_byte = 0
        while True:
            at_byte += 1 + int(random.expovariate(1 / self.mean_bytes))
            kind = random.choice(self.kinds)
            size = random.randint(1, MOST_RANDOM_BYTES)
            yield Fault(kind, direction, at_byte=at_byte, size=size, seconds=random.uniform(0, self.max_seconds))


Faults: TypeAlias = Iterable[Fault] | RandomFaults
