"""Tasks: what one is, its labels, its loss, its metric."""
