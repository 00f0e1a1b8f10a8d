"""ILP over HTTP (RFC-0035), in the synchronous form that every living peer speaks."""
