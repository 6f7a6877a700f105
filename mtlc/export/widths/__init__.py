"""Writes bundles of several widths whose weights are stored once."""
