"""The page: one HTML document with its style and its script, which loads nothing from anywhere else."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from typing import Final

from .responses import Response

__all__ = ["load_page"]

SCRIPTS: Final = ("format.js", "plot.js", "table.js", "settle.js", "page.js")


def load_page() -> Response:
    """Read the page's files and return the response with the page.

    Its policy allows this style and this script, by their digests, and requests to this server; nothing else.
    """
    folder = files(__package__).joinpath("static")
    style = folder.joinpath("page.css").read_text("utf-8")
    script = "\n".join(folder.joinpath(name).read_text("utf-8") for name in SCRIPTS)
    html = folder.joinpath("page.html").read_text("utf-8")
    html = html.replace("/* page.css */", style).replace("/* scripts */", script)
    policy = (
        f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; connect-src 'self';"
        " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Response(200, html.encode(), "text/html; charset=utf-8", policy)


def _source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
