"""Mixture-of-experts layers: routers, experts, the losses that train routing, and what any such layer declares."""
