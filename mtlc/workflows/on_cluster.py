"""Has a verb done by a machine of a Ray cluster: ``mtlc run --ray ADDRESS``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mtlc.compress.ray_cluster import connected
from mtlc.compress.training.process_group import launched
from mtlc.errors import UserError
from mtlc.job.job import load_job
from mtlc.job.overrides import Overrides
from mtlc.log import Log, silent
from mtlc.toml_files import toml_text
from mtlc.workflows.order_runners import OnRay, alone
from mtlc.workflows.work_order import WorkOrder, result_of


def on_cluster(
    verb: str,
    path: Path,
    out: Path,
    *,
    ray: str,
    overrides: Overrides = (),
    device: str | None = None,
    log: Log = silent,
    **options: Any,
) -> Any:
    """What a verb, ``run`` or ``slim``, makes of a job on the cluster at the address `ray`.

    It takes one machine, as many of its cores as torch has threads here, so that its numbers are those of this machine,
    and a GPU where `device` is ``cuda``. All machines have the paths of the job, its data and `out`. Where a machine
    dies, another one goes on from what is in `out`. `options` are further arguments of the verb.

    Raises what the verb raises, and `Unavailable` for a cluster that cannot be reached.
    """
    if launched() is not None:
        raise UserError("--ray: the cluster starts the process itself; leave torchrun or accelerate launch out")
    job = load_job(path, overrides)  # so that what is wrong with it is told here, and at once
    texts = tuple(f"{one.key}={toml_text(one.value)}" for one in job.overrides)
    with connected(ray, log) as cluster:
        threads, most = torch.get_num_threads(), cluster.most_cores()
        if most and threads > most:
            log(f"warning: no machine of the cluster has {threads} cores: {most} threads, whose sums round otherwise")
            threads = most
        order = WorkOrder(
            verb, str(job.path.resolve()), str(out.resolve()), texts, device, threads, options=tuple(options.items())
        )
        alone(order, OnRay(cluster), log)
    return result_of(order)
