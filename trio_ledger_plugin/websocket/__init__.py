"""Messages over a stream (RFC 6455)."""
