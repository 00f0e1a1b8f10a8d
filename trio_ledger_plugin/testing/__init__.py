"""For tests of plugins and of programs that use them: checks, peers and networks that do what a test says."""

from __future__ import annotations

from .conformance import Conditions, ConformanceSuite, PairConfig, PairFactory, PluginPair, Subject, run_conformance
from .faults import Direction, Fault, FaultKind, RandomFaults
from .faulty_loopback import (
    FaultyLoopback,
    Message,
    MessageKind,
    Parcel,
    ParcelKind,
    RandomDelivery,
    RandomFates,
    open_faulty_loopback,
)
from .proxy import FaultProxy, ProxiedConnection, open_fault_proxy
from .scripted_peer import ScriptedPeer, ScriptError, open_scripted_server

__all__ = [
    "Conditions",
    "ConformanceSuite",
    "Direction",
    "Fault",
    "FaultKind",
    "FaultProxy",
    "FaultyLoopback",
    "Message",
    "MessageKind",
    "PairConfig",
    "PairFactory",
    "Parcel",
    "ParcelKind",
    "PluginPair",
    "ProxiedConnection",
    "RandomDelivery",
    "RandomFates",
    "RandomFaults",
    "ScriptError",
    "ScriptedPeer",
    "Subject",
    "open_fault_proxy",
    "open_faulty_loopback",
    "open_scripted_server",
    "run_conformance",
]
