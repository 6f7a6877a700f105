"""Offers reference networks and data sets: what the examples, the tests and the benchmarks use."""

from mtlc.zoo.cityscapes import cityscapes
from mtlc.zoo.lenet import mtl_lenet
from mtlc.zoo.m3vit import m3vit
from mtlc.zoo.nyud import nyud, scenes
from mtlc.zoo.overlaid_pictures import multi_mnist
from mtlc.zoo.pascal_context import pascal_context
from mtlc.zoo.random_samples import random_samples
from mtlc.zoo.resnet import mtl_resnet
from mtlc.zoo.resnet_classifier import mtl_resnet_classifier
from mtlc.zoo.webdataset_samples import webdataset
from mtlc.zoo.yolo import mtl_yolo

__all__ = [
    "cityscapes",
    "m3vit",
    "mtl_lenet",
    "mtl_resnet",
    "mtl_resnet_classifier",
    "mtl_yolo",
    "multi_mnist",
    "nyud",
    "pascal_context",
    "random_samples",
    "scenes",
    "webdataset",
]
