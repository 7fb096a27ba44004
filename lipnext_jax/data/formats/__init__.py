"""Readers of the official archives, as they are downloaded."""
