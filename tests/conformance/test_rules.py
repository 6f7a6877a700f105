"""The rules of the suite find what breaks them, and the runner ends what takes too long."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import nn

from conformance import whole_suite
from conformance.case import Case
from conformance.jobs import leaves, outputs, task_name
from conformance.rules import broken

CASE = Case("net", "block", "nothing", nn.Identity)


def record(**changed: Any) -> dict[str, Any]:
    """A network with which all is well, and what is `changed` of it."""
    ok = {"exit": 0, "seconds": 1.0, "error": None}
    plan = ok | {"macs": 1000, "least": 100, "units": [["conv", 16]], "left_alone": [["head", 4, "an output"]]}
    prune = ok | {"budget": 0.7, "macs": 690, "compared": 1e-6, "differs": 1e-6, "tolerance": 1e-4, "missed": None}
    whole = {"facts": {}, "plan": plan, "prune": prune, "slim": ok | {"differs": 0.0, "tolerance": 1e-4}}
    return {verb: entry | changed.get(verb, {}) for verb, entry in whole.items()}


def test_a_network_with_which_all_is_well_breaks_no_rule():
    assert broken(record(), CASE) == []


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"plan": {"exit": 1, "error": "KeyError: 'x'"}}, "plan: a fault: KeyError: 'x'"),
        ({"slim": {"exit": 4, "error": "task 'a' differs"}}, "slim: differs: task 'a' differs"),
        ({"slim": {"exit": 2, "error": ""}}, "slim: ended with 2 without a word"),
        ({"slim": {"exit": 2, "error": "no"}}, "slim: refused, which the suite does not expect: no"),
        ({"slim": {"differs": 2e-4}}, "slim: outputs differ by 2.0e-04, tolerance 1e-04"),
        ({"slim": {"differs": float("nan")}}, "slim: outputs differ by nan, tolerance 1e-04"),
        ({"plan": {"units": [], "left_alone": []}}, "plan: no units, and nothing is said to be left alone"),
        ({"plan": {"left_alone": [["conv2", 8, ""]]}}, "plan: conv2 is left alone without a reason"),
        ({"prune": {"macs": 702}}, "prune: 702 MACs are left, 700 were asked for: None"),
        ({"prune": {"compared": None}}, "prune: what was built was not compared with the masked network"),
        ({"prune": {"compared": 2e-4}}, "prune: 2.0e-04 from the masked network"),
    ],
)
def test_what_breaks_a_rule_is_told(changed, line):
    assert broken(record(**changed), CASE) == [line]


def test_a_refusal_that_is_expected_breaks_no_rule_and_must_come():
    case = Case("net", "block", "nothing", nn.Identity, refused="its shape")
    found = record(plan={"exit": 2, "error": "output 'b': its shape hangs on the data"})
    del found["plan"]["units"], found["prune"], found["slim"]
    assert broken(found, case) == []
    assert broken(record(), case) == ["plan: was to be refused"]
    may = Case("net", "block", "nothing", nn.Identity, may={"slim": "no width"})
    assert broken(record(slim={"exit": 2, "error": "no width fits"}), may) == []
    assert len(broken(record(plan={"exit": 2, "error": "no width fits"}), may)) == 1


def test_a_verb_that_takes_too_long_is_ended_and_kept_as_a_fault(tmp_path, monkeypatch):
    def hangs(name: str, work: Any, verbs: Any) -> None:
        found = whole_suite.record(work, name) | {"facts": {}}
        for verb in verbs:
            if verb not in found:
                found["now"] = {"verb": verb, "since": 0.0, "spent": 0.0}
                (work / f"{name}.json").write_text(json.dumps(found))
                if verb == "plan":
                    while True:
                        pass
                found[verb] = {"exit": 0}
        found.pop("now")
        (work / f"{name}.json").write_text(json.dumps(found))

    monkeypatch.setattr(whole_suite, "run_verbs", hangs)
    monkeypatch.setattr(whole_suite, "SECONDS", {"plan": 0.2})
    monkeypatch.setattr(whole_suite, "WAITING", 1e6)  # of a busy machine the process may get little
    whole_suite.run("net", tmp_path, ("plan", "slim"))
    found = whole_suite.record(tmp_path, "net")
    assert found == {
        "facts": {},
        "plan": {"exit": 1, "error": "not done after 0.2 s of processor time"},
        "slim": {"exit": 0},
    }


def test_a_network_that_takes_too_much_memory_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(whole_suite, "BYTES", 0)
    monkeypatch.setattr(whole_suite, "run_verbs", lambda *_: [0 for _ in iter(int, 1)])
    whole_suite.run("net", tmp_path, ("plan",))
    assert whole_suite.record(tmp_path, "net")["facts"]["error"] == "more than 0 GiB of memory"


def test_outputs_are_named_as_jobs_name_them():
    class Odd(nn.Module):
        def forward(self, x):
            extra = {"aux": x[:, :1]} if self.training else {}
            return [x, {"inner": (x[..., 0], None)}, (x > 0), "text", extra]

    found = outputs(Odd(), CASE)
    assert dict(found.tasks) == {"0": (3, 32, 32), "1.inner.0": (3, 32)}
    assert found.ignored == ("2", "4.aux")
    assert [task_name(key) for key in ("", "0", "1.inner.0", "aux.1", "depth")] == [
        "out", "out0", "out1_inner_0", "aux_1", "depth",
    ]  # fmt: skip
    assert list(dict(leaves({"a": (1, None)}))) == ["a.0"]
