"""``python -m trio_ledger_plugin`` is the program ``trio-ledger-plugin``."""

import sys

from .cli.entry import main

sys.exit(main())
