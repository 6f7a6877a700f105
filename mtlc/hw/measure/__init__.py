"""Measures on this machine: latency in turns, instructions, memory, start, times by layer."""
