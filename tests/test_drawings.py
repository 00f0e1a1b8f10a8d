"""The pictures of the documentation show what the code does, and can be read by everybody."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from socket import gethostname
from xml.etree import ElementTree as ET

import pytest
from drawings.pictures import FOLDER, PICTURES
from drawings.recordings import RECORDINGS, Recording, Shell
from drawings.screen import Cell, Screen
from drawings.states import check_routes
from drawings.terminal import draw, read
from support.pages import ROOT, find_pages
from support.programs import posix

SVG = "{http://www.w3.org/2000/svg}"
# A phone's width less the margins of a page, and the smallest text that is still readable there.
PHONE, READABLE = 360, 8.5


@pytest.mark.parametrize("name", PICTURES)
def test_committed_picture_is_what_the_script_draws(name: str) -> None:
    """A table of the code changed, and the page would show the former one: run ``python -m drawings`` in ``tests``."""
    assert (FOLDER / name).read_text(encoding="utf-8") == PICTURES[name]()


@pytest.mark.parametrize("name", [*PICTURES, *RECORDINGS])
def test_picture_has_a_title_and_a_description(name: str) -> None:
    """A screen reader would read nothing, or each word of the picture without its place."""
    root = ET.fromstring((FOLDER / name).read_text(encoding="utf-8"))  # noqa: S314 (it is a file of this project)
    assert root.get("role") == "img"
    titled = {each.get("id"): each.text for each in (*root.iter(f"{SVG}title"), *root.iter(f"{SVG}desc"))}
    assert str(root.get("aria-labelledby")).split() == list(titled)
    assert all(text and text.strip() for text in titled.values())


@pytest.mark.parametrize("name", PICTURES)
def test_picture_can_be_read_on_a_phone(name: str) -> None:
    root = ET.fromstring((FOLDER / name).read_text(encoding="utf-8"))  # noqa: S314 (it is a file of this project)
    scale = min(1.0, PHONE / float(str(root.get("width"))))
    assert min(float(str(text.get("font-size"))) * scale for text in root.iter(f"{SVG}text")) >= READABLE


def test_each_file_is_drawn_and_shown_with_a_text() -> None:
    """A picture that is renamed would leave its former file behind, and one without a text tells the blind nothing."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in find_pages())
    shown = {name: text for text, name in re.findall(r"!\[([^\]]*)\]\([^)]*drawings/([\w-]+\.svg)\)", pages)}
    assert set(shown) == {path.name for path in FOLDER.iterdir()} == {*PICTURES, *RECORDINGS}
    assert all(len(text) > 30 for text in shown.values())


def test_change_of_state_that_is_not_drawn_is_an_error() -> None:
    """A state that is added to a table would be missing in its picture."""
    table = {"a": ("b",), "b": ()}
    check_routes([("a", "b")], table)
    with pytest.raises(ValueError, match="not drawn"):
        check_routes([], table)
    with pytest.raises(ValueError, match="not in the table"):
        check_routes([("a", "b"), ("b", "a")], table)


# Recordings


def canonical(lines: list[str]) -> Counter[str]:
    """Return lines without numbers, times and reasons of a lost connection, in any order: two ends report at once."""
    texts = (re.sub(r"\d[\d.,:]*( (bytes|[kM]B))?", "0", " ".join(line.split())) for line in lines)
    return Counter(re.sub(r"(disconnected): .*", r"\1", text) for text in texts)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDINGS)
async def test_committed_recording_shows_what_the_program_prints(name: str) -> None:
    """A reader would see another program: run ``python -m drawings --recordings`` in ``tests``."""
    committed = read((FOLDER / name).read_text(encoding="utf-8"))
    assert canonical(read(await RECORDINGS[name].record())) == canonical(committed)


@pytest.mark.parametrize("name", RECORDINGS)
def test_recording_names_no_folder_and_no_machine(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    for private in (gethostname(), str(ROOT), str(Path.home()), "/tmp/", "/home/"):
        assert private not in text


def shown(text: str, columns: int = 20) -> list[str]:
    screen = Screen(columns)
    screen.write(text)
    return screen.text


def test_screen_shows_lines_that_change() -> None:
    """The recording of a progress bar would show each of its states below the one before."""
    assert shown("one\r\ntwo\r\n") == ["one", "two"]
    assert shown("abcdef", columns=4) == ["abcd", "ef"]
    assert shown("10 %\r20 %") == ["20 %"]
    assert shown("long\r\x1b[2Kok") == ["ok"]
    assert shown("long\rok\x1b[K") == ["ok"]
    assert shown("a\r\nb\r\nc\x1b[2A\rx\x1b[1By") == ["x", "by", "c"]
    assert shown("a\r\nb\x1b[1A\r\x1b[J") == []
    assert shown("\x1b[?25la\x1b[?25h\x1b]0;title\x07b") == ["ab"]


def test_screen_has_the_colours() -> None:
    screen = Screen(20)
    screen.write("\x1b[1;32ma\x1b[0mb\x1b[38;5;208mc\x1b[38;2;1;2;3md\x1b[39;2me\x1b[22mf\x1b[94mg")
    assert screen.lines == [
        [
            Cell("a", "green", bold=True),
            Cell("b"),
            Cell("c", "#ff8700"),
            Cell("d", "#010203"),
            Cell("e", faint=True),
            Cell("f"),
            Cell("g", "blue"),
        ]
    ]


@pytest.mark.parametrize("text", ["\x1b[5;5H", "\x1b[7m", "\x08", "\x1b[1J", "\x1b[1K"])
def test_screen_refuses_what_it_does_not_know(text: str) -> None:
    """The picture would differ from the terminal."""
    with pytest.raises(ValueError, match="not known"):
        shown(text)


def test_picture_of_a_screen_has_its_lines() -> None:
    screen = Screen(30)
    screen.write("$ \x1b[1mrun\x1b[0m <it> & go\r\n\r\n  \x1b[31mdone  well\x1b[0m")
    picture = draw(screen, "run", 30)
    assert read(picture) == ["$ run <it> & go", "", "done  well"]
    assert 'fill="#ff8578"' in picture
    assert 'font-weight="bold"' in picture


@posix
async def test_recording_needs_no_terminal_of_its_own() -> None:
    async def play(shell: Shell) -> None:
        await shell.run("trio-ledger-plugin --version")

    recorded = read(await Recording("version", 80, play).record())
    assert recorded[0] == "$ trio-ledger-plugin --version"
    assert len(recorded) == 2
