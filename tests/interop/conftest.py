"""Have the pinned JavaScript packages in place before the first test of this directory runs."""

import os
from typing import NoReturn

import pytest

from .node import PackagesUnavailableError, install_packages

REQUIRING = ("CI", "TRIO_LEDGER_PLUGIN_REQUIRE_NODE")


@pytest.fixture(scope="session", autouse=True)
def node_packages() -> None:
    try:
        install_packages()
    except PackagesUnavailableError as error:
        _go_without(str(error))


def _go_without(reason: str) -> NoReturn:
    """Skip on a developer's machine; fail where the environment says that Node must be there."""
    asked = [name for name in REQUIRING if os.environ.get(name)]
    if asked:
        pytest.fail(f"{reason} (required, since {asked[0]} is set)", pytrace=False)
    pytest.skip(reason)
