"""Chooses widths on the device: by name, by budget and preference, or by measured latency."""
