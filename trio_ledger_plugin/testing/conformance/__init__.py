"""The conformance suite: does a plugin do what the Ledger Plugin Interface says?"""

from __future__ import annotations

from .looking import NonConformanceError
from .running import CHECKS, Outcome, Report, Verdict, run_check, run_conformance
from .stage import Check, Level, NotApplicableError
from .subject import Conditions, Subject, SubjectFactory
from .suite import ConformanceSuite

__all__ = [
    "CHECKS",
    "Check",
    "Conditions",
    "ConformanceSuite",
    "Level",
    "NonConformanceError",
    "NotApplicableError",
    "Outcome",
    "Report",
    "Subject",
    "SubjectFactory",
    "Verdict",
    "run_check",
    "run_conformance",
]
