"""TensorRT: what its parser takes (`fp16`, `int8`), building engines (`build`), and bundles that hold them (`engines`).

No module here needs torch: engines of classic TensorRT are built on the device that runs them.
"""
