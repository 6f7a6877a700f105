"""What a network costs: workloads, devices, measurement and the report.

Every number that leaves this package carries its kind: ``"measured"`` (ran here), ``"simulated"`` (a cycle model) or
``"modelled"`` (worked out from counts and peak rates). None is ever shown as another.
"""
