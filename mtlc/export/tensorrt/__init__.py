"""Exports to TensorRT: graphs that its parser takes (`fp16`, `int8`), engines (`build`), bundles of them (`engines`).

No module here needs torch: engines of classic TensorRT are built on the device that runs them.
"""
