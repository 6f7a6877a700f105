"""Sums a network's latency from measured operators: its kernels, what each takes, and the table of their times."""
