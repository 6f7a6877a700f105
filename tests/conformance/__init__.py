"""Runs every verb on many networks that mtlc did not make, and says of each what works, what is left alone, and why."""
