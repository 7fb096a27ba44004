"""Compiles programs for other machines: says whether they fit, and how fast."""
