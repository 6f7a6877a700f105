"""Gives tests what they share: small networks, jobs, bundles by hand, fakes of drivers, specifications of backends."""
