"""The time of one kernel at any channel counts, measured in a graph of copies of it.

A kernel alone measures another time than in its network: its weights would stay in the fastest cache, and the call of the
session would be counted. So a graph holds copies of the kernel, each with weights of its own as the layers of a network
have, and the floor of a call is taken off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mtlc.hw.latency.kernels import Kernel, Operand, session_options
from mtlc.runtime.onnxruntime_backend import onnxruntime

import json, os
FOOT=int(os.environ.get('FOOT',2<<20))
_TENSORS = {"float": TensorProto.FLOAT, "int64": TensorProto.INT64, "int32": TensorProto.INT32, "bool": TensorProto.BOOL}
_ARRAYS = {"float": np.float32, "int64": np.int64, "int32": np.int32, "bool": np.bool_}

def model_of(kernel: Kernel, copies: int) -> bytes:
    domain, _, name = kernel.operator.partition(":")
    domain, name = kernel.operator.rsplit(":", 1)
    attributes = json.loads(kernel.attributes)
    rng = np.random.default_rng(0)
    inputs, initializers, nodes, outputs = [], [], [], []
    names = {}
    for place, operand in enumerate(kernel.inputs):
        if operand is None: names[place] = ""; continue
        if operand.weight: continue
        names[place] = f"x{place}"
        inputs.append(helper.make_tensor_value_info(f"x{place}", _TENSORS[operand.type], operand.shape))
    for copy in range(copies):
        args = []
        for place, operand in enumerate(kernel.inputs):
            if operand is not None and operand.weight:
                if place in kernel.constants and kernel.constants[place].dtype.kind != 'f' or (place in kernel.constants and name=='Resize'):
                    value = kernel.constants[place]
                else:
                    value = rng.standard_normal(operand.shape).astype(_ARRAYS[operand.type])*np.float32(.05)
                label = f"w{copy}_{place}"
                initializers.append(numpy_helper.from_array(value, label)); args.append(label)
            else: args.append(names[place])
        outs = [f"y{copy}_{i}" for i in range(len(kernel.outputs))]
        nodes.append(helper.make_node(name, args, outs, name=f"k{copy}", domain=domain, **attributes))
        outputs += [helper.make_tensor_value_info(o, _TENSORS[k.type], k.shape) for o, k in zip(outs, kernel.outputs)]
    graph = helper.make_graph(nodes, "probe", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("com.microsoft.nchwc", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()

def footprint(kernel): 
    return 4*sum(int(np.prod(o.shape)) for o in (*[i for i in kernel.inputs if i is not None and i.weight],))

class Probe:
    def __init__(self, kernel: Kernel, threads: int = 1):
        size = footprint(kernel)+4*sum(int(np.prod(o.shape)) for o in kernel.outputs)
        self.copies = int(np.clip(FOOT // max(size,1), 4, 24))
        self.session = onnxruntime.InferenceSession(model_of(kernel, self.copies), session_options(threads), providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(0)
        self.feeds = {f"x{p}": (rng.standard_normal(o.shape).astype(np.float32) if o.type=='float' else np.zeros(o.shape,_ARRAYS[o.type])) for p,o in enumerate(kernel.inputs) if o is not None and not o.weight}
        self.out = [self.session.get_outputs()[0].name]
        self.session.run(self.out, self.feeds)
        self.times = []
    def turn(self, budget_ms=4.0):
        spent=0; found=[]
        while spent<budget_ms or len(found)<3:
            s=time.perf_counter_ns(); self.session.run(self.out,self.feeds); d=(time.perf_counter_ns()-s)/1e6
            found.append(d); spent+=d
        self.times.append(float(np.median(found)))
    def ms(self, floor=0.008): return (min(self.times)-floor)/self.copies
