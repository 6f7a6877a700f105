"""Runs a job's passes one after the other: checked, cached and resumed."""
