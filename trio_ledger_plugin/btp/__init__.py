"""BTP/2.0 over WebSocket (RFC-0023): session, link, client, listener."""
