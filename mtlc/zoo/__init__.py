"""Offers reference networks and data sets: what the examples, the tests and the benchmarks use."""

from mtlc.zoo.lenet import mtl_lenet
from mtlc.zoo.m3vit import m3vit
from mtlc.zoo.nyud import nyud, scenes
from mtlc.zoo.overlaid_pictures import multi_mnist
from mtlc.zoo.resnet import mtl_resnet
from mtlc.zoo.resnet_classifier import mtl_resnet_classifier

__all__ = ["m3vit", "mtl_lenet", "mtl_resnet", "mtl_resnet_classifier", "multi_mnist", "nyud", "scenes"]
