"""mtlc: a compiler for multi-task networks on edge devices.

Importing the package imports neither torch nor onnxruntime; the parts do that when they are used.
"""

__version__ = "0.1.0"
