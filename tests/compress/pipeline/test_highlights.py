"""What of the passes' reports stands at the top of the results."""

from __future__ import annotations

from pathlib import Path

from testkit import tiny_networks

from mtlc.compress.pass_interface import Highlights, Pass, PassConfig
from mtlc.compress.passes import registry
from mtlc.compress.pipeline.highlights import highlights
from mtlc.compress.pipeline.identity import Step
from mtlc.compress.pipeline.step_folder import Finished

OURS = registry.pass_types()


class Bare(Pass[PassConfig]):
    """A stranger's pass without hooks."""

    name = "bare"

    def run(self, program, context):
        raise NotImplementedError


class Tells(Bare):
    """A stranger's pass that shows all that it can."""

    name = "tells"

    def results(self, report, artifacts):
        return Highlights(artifacts, {"layers": report["layers"]}, [{"unit": report["layers"]}])


def told(monkeypatch, *finished: tuple[str, dict, dict]) -> Highlights:
    """What steps of these names, reports and artifacts give."""
    types = {**OURS, "bare": Bare, "tells": Tells}
    monkeypatch.setattr(registry, "pass_types", lambda: types)
    steps = [Step(name, types[name].Config(), "") for name, _, _ in finished]
    program = tiny_networks.chain_program()
    done = [
        Finished(index, name, Path(), program, report, artifacts, {}, None, 0.0, False)
        for index, (name, report, artifacts) in enumerate(finished, 1)
    ]
    return highlights(steps, done)


def test_a_pass_without_hooks_shows_nothing_at_the_top(monkeypatch):
    assert told(monkeypatch, ("bare", {"blocked": [1], "layers": 3}, {"sensitivity": 2})) == Highlights(blocked=[])


def test_ours(monkeypatch):
    found = told(
        monkeypatch,
        ("prune", {"blocked": [{"unit": "stem"}]}, {"sensitivity": {"units": []}}),
        ("extract", {"layers": ["first"]}, {"experts": []}),
        ("prune", {"blocked": [{"unit": "body"}]}, {}),
    )
    assert found == Highlights({"units": []}, {"layers": ["first"]}, [{"unit": "stem"}, {"unit": "body"}])


def test_the_first_sensitivity_the_last_experts_and_everything_that_was_blocked(monkeypatch):
    found = told(monkeypatch, ("tells", {"layers": 1}, {"growth": 1}), ("tells", {"layers": 2}, {"growth": 2}))
    assert found == Highlights({"growth": 1}, {"layers": 2}, [{"unit": 1}, {"unit": 2}])


def test_the_settings_have_the_type_in_the_brackets():
    class Settings(PassConfig):
        share: float = 0.5

    class Half(Pass[Settings]):
        name = "half"

        def run(self, program, context):
            raise NotImplementedError

    class Third(Half):
        """A subclass has the settings of its base."""

        name = "third"

    assert (Half.Config, Third.Config) == (Settings, Settings)
    assert Half(Half.Config(share=0.25)).config.share == 0.25
