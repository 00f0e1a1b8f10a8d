"""The conformance suite: does a plugin conform to the Ledger Plugin Interface?"""

from __future__ import annotations

from .assertions import NonConformanceError
from .harness import Check, Level, NotApplicableError
from .pair import Conditions, InvalidFactoryError, PairConfig, PairFactory, PluginPair, Subject, SubjectFactory
from .runner import CHECKS, Outcome, Report, Verdict, run_check, run_conformance
from .suite import ConformanceSuite

__all__ = [
    "CHECKS",
    "Check",
    "Conditions",
    "ConformanceSuite",
    "InvalidFactoryError",
    "Level",
    "NonConformanceError",
    "NotApplicableError",
    "Outcome",
    "PairConfig",
    "PairFactory",
    "PluginPair",
    "Report",
    "Subject",
    "SubjectFactory",
    "Verdict",
    "run_check",
    "run_conformance",
]
