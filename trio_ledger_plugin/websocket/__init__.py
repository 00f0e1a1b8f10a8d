"""WebSocket connections (RFC 6455)."""
