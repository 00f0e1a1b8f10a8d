"""The machinery of a plugin; it knows no protocol."""
