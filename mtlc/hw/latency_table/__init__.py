"""Latency as a sum of operators that were measured: which kernels run, what each takes, and the table that keeps it."""
