"""What ``--set`` makes of a job: every key, the nearest right one for a wrong one, a file of what was run."""

from __future__ import annotations

import contextlib
import string
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit import toy_job

from mtlc.errors import UserError
from mtlc.job import load_job
from mtlc.job.overrides import overridden, read_overrides
from mtlc.job.schema import JobFile
from mtlc.toml_files import toml_file

KEYS = [field.alias or name for name, field in JobFile.model_fields.items()]
MORE = """\
[train]
epochs = 3
[budget]
macs = "60%"
[[passes]]
name = "prune"
round_to = 4
[[passes]]
name = "finetune"
epochs = 2
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return toy_job.write(tmp_path, toy_job.JOB, MORE)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("seed=7", lambda job: job.seed == 7),
        ("seed = 7", lambda job: job.seed == 7),
        ("passes.0.round_to=16", lambda job: job.steps[0].config.round_to == 16),
        ("passes.1.epochs=0", lambda job: job.steps[1].config.epochs == 0),
        ("passes=[]", lambda job: job.steps == ()),
        ("tasks.depth.max_drop=0.02", lambda job: job.file.tasks["depth"].max_drop == 0.02),
        ("tasks.depth.max_drop=1%", lambda job: job.file.tasks["depth"].max_drop == "1%"),
        ('tasks.depth.max_drop="1%"', lambda job: job.file.tasks["depth"].max_drop == "1%"),
        ("tasks.depth.loss=mse", lambda job: job.tasks[0].loss == "mse"),
        ("train.lr=1e-4", lambda job: job.train.lr == 1e-4),
        ("data.args.train=64", lambda job: job.file.data.args == {"train": 64}),
        ("model.args.a.b=[1, 2]", lambda job: job.file.model.args == {"a": {"b": [1, 2]}}),
        ('model.args."a.b"=true', lambda job: job.file.model.args == {"a.b": True}),
        ("quantize.samples=3", lambda job: job.file.quantize is not None and job.file.quantize.samples == 3),
        ("data.root=a = b", lambda job: job.file.data.root == "a = b"),
    ],
)
def test_any_key_can_be_set(job, text, found):
    loaded = load_job(job, [text])
    assert found(loaded)
    assert not found(load_job(job))
    # What is written down does the same.
    assert JobFile.model_validate(tomllib.loads(loaded.as_run())) == loaded.file


@pytest.mark.parametrize("text", ['budget.latency="12ms"', "budget.latency=12ms"])
def test_a_budget_that_is_set_stands_for_the_one_in_the_file(job, text):
    section = load_job(job, [text]).file.budget
    assert (section.kind, section.latency, section.macs) == ("latency", "12ms", None)
    back = load_job(job, [text, "budget.device=local-cpu"])
    assert back.file.budget.device == "local-cpu"
    with pytest.raises(UserError, match="exactly one of macs, params, memory and latency, not macs and latency"):
        load_job(job, [text, "budget.macs=3M"])


def test_a_device_goes_with_the_latency_it_was_for(job):
    toy_job.write(job.parent, toy_job.JOB, '[budget]\nlatency = "12ms"\ndevice = "local-cpu"\n')
    assert load_job(job, ["budget.macs=40%"]).file.budget.device is None
    assert load_job(job, ["budget.latency=9ms"]).file.budget.device == "local-cpu"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("pases.0.round_to=1", "--set pases.0.round_to: no key 'pases' in a job; did you mean 'passes'?"),
        ("tasks.depht.weight=2", "--set tasks.depht.weight: no 'depht' in [tasks]; did you mean 'depth'?"),
        ("tasks.depth.wieght=2", "--set tasks.depth.wieght: no key 'wieght' in [tasks.depth]; did you mean 'weight'?"),
        ("quantize.smples=3", "--set quantize.smples: no key 'smples' in [quantize]; did you mean 'samples'?"),
        ("passes.2.epochs=1", "no entry 2: passes has 2 entries, 0 to 1 (0 is 'prune'; 1 is 'finetune')"),
        ("passes.-1.epochs=1", "no entry -1: passes has 2 entries, 0 to 1"),
        ("passes.prune.x=1", "'prune' is no place in a list: passes has 2 entries"),
        ("model.ignore_outputs.0=aux", "no entry 0: model.ignore_outputs has no entries"),
        ("seed.x=1", "--set seed.x: seed is 3, which has no keys in it"),
        ("seed", "--set seed: write KEY=VALUE, such as --set passes.0.round_to=16"),
        ("=3", "--set =3: write KEY=VALUE"),
        ("a b=3", "--set a b: not a key"),
        ("passes=[1", "--set passes=[1: not a value of TOML: Unclosed array"),
        ("passes.0.rund_to=3", "'prune' rund_to: unknown key; did you mean 'round_to'? (set: passes.0.rund_to=3)"),
        ("train.epohcs=3", "[train] epohcs: unknown key; did you mean 'epochs'? (set: train.epohcs=3)"),
        ("seed=two", "seed: input should be a valid integer, not 'two' (set: seed=\"two\")"),
    ],
)
def test_a_wrong_one_is_one_line_with_the_nearest_right_form(job, text, line):
    job.write_text("seed = 3\n" + job.read_text())
    with pytest.raises(UserError) as error:
        load_job(job, [text])
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["~train.epochs"], lambda job: job.train.epochs != 3),
        (["~ passes.0"], lambda job: [step.name for step in job.steps] == ["finetune"]),
        (["~passes.0", "passes.0.epochs=5"], lambda job: [step.config.epochs for step in job.steps] == [5]),
        (["~passes"], lambda job: job.steps == ()),
        (["tasks.depth.max_drop=1%", "~tasks.depth.max_drop"], lambda job: job.file.tasks["depth"].max_drop is None),
        (["~tasks.depth"], lambda job: list(job.file.tasks) == ["semseg"]),
        (["~budget", "budget.params=1M"], lambda job: job.file.budget.kind == "params"),
        (["data.args.a=1", "data.args.b=2", "~data.args.a"], lambda job: job.file.data.args == {"b": 2}),
    ],
)
def test_a_key_can_be_removed(job, texts, found):
    loaded = load_job(job, texts)
    assert found(loaded)
    assert JobFile.model_validate(tomllib.loads(loaded.as_run())) == loaded.file
    assert load_job(job, [one.text for one in loaded.overrides]).file == loaded.file


def test_none_removes_in_python_and_is_told(job):
    loaded = load_job(job, {"train.epochs": None, "passes.1": None})
    assert (loaded.train.epochs != 3, len(loaded.steps)) == (True, 1)
    assert loaded.changes == {"train.epochs": None, "passes.1": None}
    assert loaded.as_run().splitlines()[1:3] == ['# set: "~train.epochs"', '# set: "~passes.1"']


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("~", "--set ~: ~KEY removes a key and takes no value, such as --set '~tasks.depth.max_drop'"),
        ("~seed=3", "--set ~seed=3: ~KEY removes a key and takes no value"),
        ("~seed", "--set ~seed: 'seed' is not set in a job, so there is nothing to remove"),
        ("~train.epohcs", "'epohcs' is not set in [train], so there is nothing to remove; did you mean 'epochs'?"),
        ("~pases.0", "--set ~pases.0: no key 'pases' in a job; did you mean 'passes'?"),
        (
            "~tasks.depht",
            "--set ~tasks.depht: 'depht' is not set in [tasks], so there is nothing to remove; did you mean",
        ),
        ("~quantize.samples", "--set ~quantize.samples: 'quantize' is not set in a job, so there is nothing to remove"),
        ("~passes.2", "--set ~passes.2: no entry 2: passes has 2 entries, 0 to 1"),
        ("~tasks", "job.toml: [tasks]: this section is required (set: ~tasks)"),
        ("~model.factory", "(set: ~model.factory)"),
    ],
)
def test_what_cannot_be_removed_is_one_line(job, text, line):
    with pytest.raises(UserError) as error:
        load_job(job, [text])
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_the_later_is_over_the_earlier(job):
    assert load_job(job, ["seed=1", "seed=2"]).seed == 2
    one = load_job(job, ['passes=[{name="prune"}]', "passes.0.round_to=2"])
    assert [step.config.round_to for step in one.steps] == [2]


def test_python_gives_values_by_key(job):
    loaded = load_job(job, {"passes.0.round_to": 16, "data.root": Path("x/y"), "tasks.depth.loss_args": {}})
    assert loaded.steps[0].config.round_to == 16
    assert loaded.changes == {"passes.0.round_to": 16, "data.root": "x/y", "tasks.depth.loss_args": {}}
    with pytest.raises(UserError, match=r"overrides\['pases'\]: no key 'pases' in a job; did you mean 'passes'\?"):
        load_job(job, {"pases": []})
    with pytest.raises(UserError, match=r"overrides\['seed'\]: a job has no value of type 'object'"):
        load_job(job, {"seed": object()})
    with pytest.raises(UserError, match=r"overrides = 'seed=1': give a dict of values by key, or a list"):
        load_job(job, "seed=1")


def test_overrides_go_on_top_of_those_of_a_job(job):
    first = load_job(job, {"seed": 3})
    assert load_job(first) is first
    assert load_job(first, {"passes.0.round_to": 2}).changes == {"seed": 3, "passes.0.round_to": 2}
    assert load_job(first, {"passes.0.round_to": 2}).seed == 3


def test_what_was_run_is_the_file_unless_something_was_set(job):
    assert load_job(job).as_run() == job.read_text()
    text = load_job(job, ["seed=4"]).on("cpu").as_run()
    assert text.splitlines()[:3] == [
        '# "job.toml" as it was run; relative paths are relative to the folder of that file.',
        '# set: "seed=4"',
        '# set: "device=\\"cpu\\""',
    ]
    values = tomllib.loads(text)
    assert (values["seed"], values["device"], values["budget"]) == (4, "cpu", {"macs": "60%"})


texts = st.text(alphabet=[*string.printable, "ä", "\x7f", "\u2028", "😀"], max_size=8)
scalars = st.one_of(st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), texts, st.dates())
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)


@given(st.dictionaries(texts, values, max_size=4))
def test_what_is_written_as_toml_reads_back(table):
    assert tomllib.loads(toml_file(table)) == table


@given(st.text(max_size=20))
def test_no_text_breaks_the_reader(text):
    with contextlib.suppress(UserError):
        assert set(overridden({"schema": 1, "passes": [{}]}, read_overrides([text]))) <= set(KEYS)
