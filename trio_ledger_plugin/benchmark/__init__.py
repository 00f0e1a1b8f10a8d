"""Measures plugins: an end a process, alternating rounds in one run, ratios of medians."""
