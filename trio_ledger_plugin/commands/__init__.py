"""The commands of ``trio-ledger-plugin``; one a module, joined in ``root``. Needs the extra ``cli``."""
