"""Compiles train steps for other machines and estimates memory and time."""
