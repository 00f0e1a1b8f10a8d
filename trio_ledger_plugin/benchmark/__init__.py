"""Measures plugins: one process for each end, alternating rounds, medians of ratios."""
