"""Describes devices: peak rates, bandwidth, memory, power, each with its source.

Models the times of a network on them with a roofline.
"""
