"""Sphinx's settings."""

from importlib.metadata import version as installed_version

project = "trio_ledger_plugin"
author = "trio_ledger_plugin contributors"
copyright = author  # noqa: A001 (Sphinx's name)
release = version = installed_version("trio-ledger-plugin")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
html_theme = "furo"
exclude_patterns = ["_build"]
nitpicky = True
# No inventories of the standard library and of Trio are at hand offline.
nitpick_ignore = [
    ("py:class", "ssl.SSLContext"),
    ("py:class", "datetime.datetime"),
    ("py:class", "collections.abc.Callable"),
    ("py:class", "collections.abc.Mapping"),
    ("py:class", "trio.Nursery"),
]
autodoc_member_order = "bysource"
autodoc_typehints = "none"
