"""Holds what the sections of a report share: the page, and numbers in words."""
