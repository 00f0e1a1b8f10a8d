"""The entry point of the program ``trio-ledger-plugin``.

The commands need the extra ``cli``. This module does not import them at the top, so that it can say when the extra is
missing.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

USAGE, INTERRUPTED = 2, 130


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: The arguments after the program's name; if None, those of the process.

    Returns:
        The exit code; ``trio-ledger-plugin --help`` lists them.
    """
    try:
        from .program import run  # noqa: PLC0415 (the extra may be missing)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"click", "rich"}:
            raise
        sys.stderr.write("error: the command line is an extra; in a clone: pip install '.[cli]'\n")
        return USAGE
    except KeyboardInterrupt:
        # Importing the commands takes long enough for that.
        sys.stderr.write("\nerror: interrupted\n")
        return INTERRUPTED
    return run(args)
