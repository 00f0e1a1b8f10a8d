"""Draws the pictures of the documentation: ``python -m drawings`` in this folder's parent.

Invariant: a picture is a function of the code's own tables, or of a program's real output, so it shows what is true.
"""
