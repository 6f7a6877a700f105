"""Chooses how much of each unit goes, by what the network is worth after recovery, and prunes in rounds."""
