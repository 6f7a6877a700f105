"""The runtime needs numpy and a backend only, and is quick to import. Each check is a process of its own."""

import subprocess
import sys

CODE = """
import sys, time
started = time.process_time()
import onnxruntime
print(time.process_time() - started)
started = time.process_time()
import mtlc.runtime
print(time.process_time() - started)
started = time.process_time()
from mtlc.runtime import Session, open_bundle, picture
print(time.process_time() - started)
with Session(sys.argv[1]) as session:
    import numpy as np
    session.run(np.zeros((1, 3, 20, 20), np.float32))
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "onnx", "pydantic", "PIL", "openvino", "click"}))
"""


def test_nothing_heavy_is_imported(bundle):
    runs = [
        subprocess.run(
            [sys.executable, "-c", CODE, str(bundle)], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for _ in range(3)
    ]
    assert all(run[3] == "[]" for run in runs)
    # CPU time beside that of the engine's own import, which nobody is spared, the best of three: the processor does not
    # matter. Two thirds of it are usual for all of the runtime, and a fiftieth for its name alone.
    engine, name, rest = (min(float(run[place]) for run in runs) for place in range(3))
    assert name < 0.2 * engine
    assert name + rest < 2 * engine


def test_importing_the_runtime_imports_no_backend():
    code = (
        "import sys; from mtlc.runtime import open_bundle; print(sorted({'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
