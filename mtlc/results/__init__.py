"""Describes what the verbs return: a model for each result, with documented fields and units."""
