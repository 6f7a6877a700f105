"""Defines mixture-of-experts layers: routers, experts, losses that train routing, and what such a layer declares."""
