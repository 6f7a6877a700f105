"""Counts what a network computes: operators, MACs, parameters, bytes."""
