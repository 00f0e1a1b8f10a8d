"""Sockets; knows neither plugins nor WebSocket."""
