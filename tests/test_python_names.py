"""Imports what a Python user imports: the public names, and the modules' names in earlier documentation."""

import importlib
import subprocess
import sys

import pytest

import mtlc
from mtlc.moved import MOVED

PACKAGES = (
    "mtlc mtlc.program mtlc.tasks mtlc.evaluation mtlc.job mtlc.hw.devices mtlc.hw.measure mtlc.runtime mtlc.export"
)

DOCUMENTED = {
    "mtlc.data": "Splits",
    "mtlc.metrics": "Metric",
    "mtlc.compress.calibrate": "recalibrate_batchnorm",
    "mtlc.hw.active": "active tokens_per_expert",
    "mtlc.hw.footprint": "footprint",
    "mtlc.hw.fpga.network": "PUBLISHED from_program",
    "mtlc.hw.fpga.routing": "record synthetic",
    "mtlc.hw.fpga.search": "search",
    "mtlc.hw.fpga.simulator": "simulate",
    "mtlc.hw.fpga.timeline": "timeline_figure write_chrome_trace",
    "mtlc.hw.instructions": "Counter",
    "mtlc.hw.latency.table": "open_table",
    "mtlc.hw.layer_profile": "profile_layers",
    "mtlc.hw.report": "write_report results_layers results_latency",
    "mtlc.hw.report_quantization": "write_quantization_page",
    "mtlc.hw.report_widths": "write_widths_report",
    "mtlc.hw.rtl.simulator": "simulate",
    "mtlc.hw.width_plots": "pareto_figure widths_figure",
    "mtlc.hw.workload": "workload onnx_workload macs parameters",
    "mtlc.runtime.choose": "Budget normalised_preference relative_gain",
}


@pytest.mark.parametrize("package", PACKAGES.split())
def test_public_names(package):
    module = importlib.import_module(package)
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(AttributeError, match="did you mean 'Program'"):
        mtlc.Progam  # noqa: B018


@pytest.mark.parametrize("old", MOVED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_names(old):
    module = importlib.import_module(old)
    assert all(getattr(module, name) is not None for name in DOCUMENTED.get(old, "").split())


def test_an_old_name_warns_once_and_gives_the_same_class():
    code = (
        "import warnings; warnings.simplefilter('always')\n"
        "from mtlc.data import Splits\nfrom mtlc.data import Splits as again\n"
        "from mtlc.evaluation.splits import Splits as new\n"
        "print(Splits is new is again)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert done.stderr.count("DeprecationWarning: mtlc.data is now mtlc.evaluation.splits") == 1


def test_importing_mtlc_imports_nothing_heavy():
    code = (
        "import sys, mtlc, mtlc.tasks, mtlc.job, mtlc.program; "
        "print({'torch', 'onnxruntime', 'pydantic', 'numpy', 'onnx'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_verbs_that_are_packages_are_called_and_imported_from():
    code = (
        "import mtlc, sys, inspect\n"
        "assert 'torch' not in sys.modules and callable(mtlc.compress) and callable(mtlc.export)\n"
        "from mtlc.compress.passes.prune import Prune\n"
        "from mtlc import compress, export\n"
        "assert mtlc.compress.passes.prune.Prune is Prune is mtlc.Prune\n"
        "assert list(inspect.signature(compress).parameters)[:3] == ['model', 'tasks', 'train']\n"
        "assert export.export_bundle is mtlc.export_bundle\n"
        "try: compress(3, {}, None, out='x')\n"
        "except mtlc.MtlcError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "model is int: give an nn.Module\n"
