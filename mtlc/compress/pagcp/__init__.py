"""Prunes channels by PAGCP, performance-aware global channel pruning.

The sweep over the network, and the oracle that says what each cut costs every task.
"""
