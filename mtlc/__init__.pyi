from mtlc.compress.pass_interface import Pass as Pass
from mtlc.errors import MtlcError as MtlcError
from mtlc.evaluation.splits import Splits as Splits
from mtlc.export.bundle.verify import verify_bundle as verify_bundle
from mtlc.export.bundle.write_bundle import export_bundle as export_bundle
from mtlc.job.job import load_job as load_job
from mtlc.program.program import Program as Program
from mtlc.runtime.bundle.open_bundle import open_bundle as open_bundle
from mtlc.runtime.session import Session as Session
from mtlc.tasks.metrics import Metric as Metric
from mtlc.tasks.task import Limit as Limit
from mtlc.tasks.task import TaskSpec as TaskSpec
from mtlc.workflows.plan import plan_job as plan_job
from mtlc.workflows.run import run_job as run_job
from mtlc.workflows.slim import slim_job as slim_job

__version__: str
