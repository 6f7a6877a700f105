"""Reaches boards from the workstation: copies packages to them, and runs programs there."""
