"""Compresses networks: the passes, the training loop that they share, and the pipeline that runs and checks them."""

from mtlc.lazy import callable_package

callable_package(__name__, "mtlc.workflows.python_verbs:compress")
