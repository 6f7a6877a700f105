"""Offers reference networks and data sets: what the examples, the tests and the benchmarks use."""

from mtlc.zoo.m3vit import m3vit
from mtlc.zoo.nyud import nyud, scenes
from mtlc.zoo.resnet import mtl_resnet

__all__ = ["m3vit", "mtl_resnet", "nyud", "scenes"]
