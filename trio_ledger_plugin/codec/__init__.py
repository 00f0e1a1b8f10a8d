"""Packets to bytes and back: OER, BTP, ILPv4, ILDCP and STREAM. Nothing here does I/O or imports Trio."""
