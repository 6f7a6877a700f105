"""Writes a bundle, verifies every program in it, and puts it in its place."""
