"""Writes a commented job that works as it is: ``mtlc init``."""

from __future__ import annotations

from pathlib import Path

from mtlc.errors import UserError
from mtlc.files import atomic_file, make_folder, remove_leftovers

STARTER = """\
# A job for mtlc: what to compress, on which data, to which budget. The manual's page "job" explains every key.
#
#   mtlc train job.toml      train the network and write its weights
#   mtlc plan job.toml       say what would happen, and whether the budget can be reached
#   mtlc run job.toml        compress, export, verify, measure, report
#
# Names such as "module:callable" are imported and called; a module may stand beside this file.
schema = 1
seed = 0

[model]
factory = "mtlc.zoo:mtl_resnet"     # any callable that returns a torch.nn.Module
weights = "weights.safetensors"     # written by `mtlc train`; leave it out if the factory loads its own
# ignore_outputs = ["aux"]          # outputs of the network that are no task
# inputs = ["image"]                # which entries of a sample the network takes, in order

[model.args]                        # keyword arguments of the factory
tasks = ["semseg", "depth", "normals"]
widths = [16, 32, 64, 96]
depths = [1, 1, 1, 1]
decoder_width = 16

# One table for each task. `max_drop` is a hard limit on the validation split: a share of the metric ("2%"), or a number
# in the metric's own unit. `output` and `target` default to the task's name.
[tasks.semseg]
loss = "cross_entropy"
metric = "miou"
max_drop = "3%"

[tasks.depth]
loss = "l1"
metric = "rmse"
max_drop = "3%"

[tasks.normals]
loss = "normals_l1"
metric = "mean_angle"
max_drop = "3%"

[data]
factory = "mtlc.zoo:scenes"         # small indoor scenes, generated on the first run
root = "data/scenes"

[data.args]
train = 2000
val = 400
size = 64

[train]                             # for `mtlc train`
epochs = 30
batch_size = 32
lr = 2e-3

[budget]                            # one of macs, params, memory and latency
macs = "60%"                        # of the original; or an absolute number such as "25MMACs"

[[passes]]
name = "prune"
round_to = 4                        # channels stay a multiple of this

[[passes]]
name = "finetune"
epochs = 5

[export]
formats = ["onnx"]

[report]
devices = ["local-cpu"]
pictures = 4
# baselines = "single-task.json"    # {"depth": 0.61, ...}: metrics of single-task networks, for delta m
"""


def init(folder: Path, force: bool = False) -> Path:
    """Write ``job.toml`` into `folder`; an existing one is kept, with a `UserError`, unless `force`."""
    target = Path(folder) / "job.toml"
    make_folder(target.parent)
    remove_leftovers(target.parent, target.name)  # of one that was killed, also where this one writes nothing
    if target.exists() and not force:
        raise UserError(f"{target} exists; --force overwrites it")
    with atomic_file(target) as temporary:
        temporary.write_text(STARTER)
    return target
