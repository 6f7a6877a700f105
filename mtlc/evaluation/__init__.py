"""Data splits, losses and metrics: measures what a program is worth, task by task."""
