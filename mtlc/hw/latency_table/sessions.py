"""Sessions of onnxruntime as the runtime makes them, for graphs that are looked at and timed."""

from __future__ import annotations

from mtlc.runtime.backends.onnxruntime_backend import onnxruntime


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """The options of `mtlc.runtime.backends.onnxruntime_backend`, but without optimisation: for graphs that are final.

    `threads` is how many threads an operator may use.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.inter_op_num_threads, options.intra_op_num_threads = 1, threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options
