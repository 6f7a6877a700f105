"""Finds channels that can be removed together, says what removing them saves, and removes them."""
