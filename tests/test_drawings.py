"""The pictures of the documentation show what the code does, and can be read by everybody."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from drawings.pictures import FOLDER, PICTURES
from drawings.states import check_routes
from support.pages import find_pages

SVG = "{http://www.w3.org/2000/svg}"
# A phone's width less the margins of a page, and the smallest text that is still readable there.
PHONE, READABLE = 360, 8.5


@pytest.mark.parametrize("name", PICTURES)
def test_committed_picture_is_what_the_script_draws(name: str) -> None:
    """A table of the code changed, and the page would show the former one: run ``python -m drawings`` in ``tests``."""
    assert (FOLDER / name).read_text(encoding="utf-8") == PICTURES[name]()


@pytest.mark.parametrize("name", PICTURES)
def test_picture_has_a_title_and_a_description(name: str) -> None:
    """A screen reader would read nothing, or each word of the picture without its place."""
    root = ET.fromstring((FOLDER / name).read_text(encoding="utf-8"))  # noqa: S314 (it is a file of ours)
    assert root.get("role") == "img"
    titled = {each.get("id"): each.text for each in (*root.iter(f"{SVG}title"), *root.iter(f"{SVG}desc"))}
    assert str(root.get("aria-labelledby")).split() == list(titled)
    assert all(text and text.strip() for text in titled.values())


@pytest.mark.parametrize("name", PICTURES)
def test_picture_can_be_read_on_a_phone(name: str) -> None:
    root = ET.fromstring((FOLDER / name).read_text(encoding="utf-8"))  # noqa: S314 (it is a file of ours)
    scale = min(1.0, PHONE / float(str(root.get("width"))))
    assert min(float(str(text.get("font-size"))) * scale for text in root.iter(f"{SVG}text")) >= READABLE


def test_each_file_is_drawn_and_shown_with_a_text() -> None:
    """A picture that is renamed would leave its former file behind, and one without a text tells the blind nothing."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in find_pages())
    shown = {name: text for text, name in re.findall(r"!\[([^\]]*)\]\([^)]*drawings/([\w-]+\.svg)\)", pages)}
    assert set(shown) == {path.name for path in FOLDER.iterdir()} == set(PICTURES)
    assert all(len(text) > 30 for text in shown.values())


def test_change_of_state_that_is_not_drawn_is_an_error() -> None:
    """A state that is added to a table would be missing in its picture."""
    table = {"a": ("b",), "b": ()}
    check_routes([("a", "b")], table)
    with pytest.raises(ValueError, match="not drawn"):
        check_routes([], table)
    with pytest.raises(ValueError, match="not in the table"):
        check_routes([("a", "b"), ("b", "a")], table)
