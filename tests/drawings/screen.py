"""What a terminal shows after a program has written to it: characters, their colours, and where the cursor is.

It knows the control sequences that Rich and click write. Any other is an error, since the picture would be wrong.
"""

from __future__ import annotations

import re

from attrs import evolve, frozen

__all__ = ["Cell", "Screen"]

SEQUENCE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
# The colours of SGR 30 to 37 and 90 to 97.
NAMES = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")


@frozen
class Cell:
    """One character as it looks.

    Attributes:
        letter: The character.
        colour: The name of its colour, or a ``#`` and six digits; empty for the usual colour.
        bold: Whether it is bold.
        faint: Whether it is faint.
    """

    letter: str = " "
    colour: str = ""
    bold: bool = False
    faint: bool = False


class Screen:
    """A terminal of unlimited height.

    Args:
        columns: How many characters fit in a line.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._lines: list[list[Cell]] = [[]]
        self._row = self._column = 0
        self._pen = Cell()

    @property
    def lines(self) -> list[list[Cell]]:
        """The lines, without empty ones at the end."""
        shown = [line[:] for line in self._lines]
        while shown and not any(cell.letter.strip() for cell in shown[-1]):
            shown.pop()
        return shown

    @property
    def text(self) -> list[str]:
        """The lines without colours."""
        return ["".join(cell.letter for cell in line).rstrip() for line in self.lines]

    def write(self, text: str) -> None:
        """Show what a program writes.

        Raises:
            ValueError: A control sequence is not known.
        """
        at = 0
        while at < len(text):
            if found := SEQUENCE.match(text, at):
                at = found.end()
                if found[3]:
                    self._control(found[1], found[2], found[3])
                continue
            self._letter(text[at])
            at += 1

    def _letter(self, letter: str) -> None:
        if letter == "\r":
            self._column = 0
        elif letter == "\n":
            self._row += 1
        elif letter.isprintable():
            if self._column == self._columns:
                self._row, self._column = self._row + 1, 0
            line = self._line()
            line += [Cell()] * (self._column + 1 - len(line))
            line[self._column] = evolve(self._pen, letter=letter)
            self._column += 1
        else:
            raise ValueError(f"{letter!r} is not known")

    def _line(self) -> list[Cell]:
        self._lines += [[] for _ in range(self._row + 1 - len(self._lines))]
        return self._lines[self._row]

    def _control(self, private: str, digits: str, kind: str) -> None:
        numbers = [int(number or 0) for number in digits.split(";")]
        if private and kind in "hl":
            return  # the cursor is hidden or shown
        match kind:
            case "m":
                self._set_pen(numbers)
            case "A":
                self._row = max(self._row - max(numbers[0], 1), 0)
            case "B":
                self._row += max(numbers[0], 1)
            case "K" if numbers[0] == 2:
                self._line().clear()
            case "K" if numbers[0] == 0:
                del self._line()[self._column :]
            case "J" if numbers[0] == 0:
                del self._line()[self._column :]
                del self._lines[self._row + 1 :]
            case _:
                raise ValueError(f"ESC [ {private}{digits} {kind} is not known")

    def _set_pen(self, numbers: list[int]) -> None:
        at = 0
        while at < len(numbers):
            number, at = numbers[at], at + 1
            match number:
                case 0:
                    self._pen = Cell()
                case 1:
                    self._pen = evolve(self._pen, bold=True)
                case 2:
                    self._pen = evolve(self._pen, faint=True)
                case 22:
                    self._pen = evolve(self._pen, bold=False, faint=False)
                case 39:
                    self._pen = evolve(self._pen, colour="")
                case 38 if numbers[at] == 5:
                    self._pen = evolve(self._pen, colour=_of_256(numbers[at + 1]))
                    at += 2
                case 38 if numbers[at] == 2:
                    red, green, blue = numbers[at + 1 : at + 4]
                    self._pen = evolve(self._pen, colour=f"#{red:02x}{green:02x}{blue:02x}")
                    at += 4
                case _ if number in range(30, 38) or number in range(90, 98):
                    self._pen = evolve(self._pen, colour=NAMES[number % 10])
                case _:
                    raise ValueError(f"ESC [ {number} m is not known")


def _of_256(number: int) -> str:
    """Return a colour of the table of 256: 16 with names, a cube of 216, and 24 greys."""
    if number < 16:
        return NAMES[number % 8]
    if number >= 232:
        return "#" + f"{8 + 10 * (number - 232):02x}" * 3
    steps = (number - 16) // 36, (number - 16) // 6 % 6, (number - 16) % 6
    return "#" + "".join(f"{55 + 40 * step if step else 0:02x}" for step in steps)
