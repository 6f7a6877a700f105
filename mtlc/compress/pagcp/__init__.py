"""Performance-aware global channel pruning (PAGCP).

The sweep over the network, and the oracle that says what each cut costs every task.
"""
