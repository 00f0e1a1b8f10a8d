"""Packets to bytes and back: OER, BTP, ILPv4 and ILDCP. Nothing here does I/O or imports Trio."""
