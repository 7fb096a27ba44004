"""Compiles programs for other machines: do they fit, and how fast are they?"""
