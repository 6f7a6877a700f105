"""Counts, measures and models what a network costs: operations, memory and time, on this machine and on others.

Every number that leaves this package carries its kind: ``"measured"`` (ran here), ``"simulated"`` (a cycle model) or
``"modelled"`` (worked out from counts and peak rates). None is ever shown as another.
"""
