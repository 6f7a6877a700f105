"""A bundle with several widths: what each configuration computes, and how a budget chooses one."""

import json
import threading
import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testkit.hand_bundle import (
    DECODERS,
    ENCODERS,
    HEAD_MACS,
    NECK_MACS,
    TRUNK_MACS,
    slim_expected,
    slim_manifest,
    slim_metric,
    slim_payloads,
    write,
)

from mtlc.errors import UserError
from mtlc.runtime import Session
from mtlc.runtime.widths.configurations import ActiveConfiguration


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """One session for the tests that only switch it."""
    with Session(
        write(tmp_path_factory.mktemp("slim") / "bundle", slim_payloads(), slim_manifest()), eager=True
    ) as opened:
        yield opened


def encoder_of(configuration: ActiveConfiguration) -> str:
    widths = tuple(configuration.encoder.values())
    return next(name for name, of_stages in ENCODERS.items() if of_stages == widths)


def macs_of(encoder: str, near: float | None, far: float | None) -> int:
    """By hand: the neck is for the task far alone."""
    heads = [width for width in (near, far) if width is not None]
    return TRUNK_MACS[encoder] + (NECK_MACS if far is not None else 0) + int(sum(HEAD_MACS[encoder] * w for w in heads))


def check(outputs, x, configuration):
    expected = slim_expected(x, encoder_of(configuration), **configuration.decoders)
    for task, array in outputs.items():
        np.testing.assert_allclose(array, expected[task], rtol=1e-5, atol=1e-4)


def test_a_bundle_of_one_width(bundle, x):
    with Session(bundle) as session:
        assert session.configurations == ("default",)
        active = session.configure("default")
        assert active == session.configuration
        assert active == ActiveConfiguration("default", {}, {}, ("plus", "square", "less"), None, {})
        with pytest.raises(UserError, match="no configuration 'half'; known: default"):
            session.configure("half")
        for refused in (lambda: session.configure(budget="40%"), lambda: session.governor(12.0)):
            with pytest.raises(UserError) as caught:
                refused()
            assert str(caught.value) == (
                f"{bundle}: the bundle runs at one width only: make one with several by `mtlc slim`, "
                "or use configure('default')"
            )
        assert set(session.calibrate(x, rounds=1)) == {"trunk", "shared", "head-plus", "head-square", "head-less"}


def test_named_configurations(session, x):
    assert session.configurations == ("default", "small")
    default = session.configure("default")
    assert default == ActiveConfiguration(
        "default",
        {"stage1": 1.0, "stage2": 1.0},
        {"near": 1.0, "far": 1.0},
        ("near", "far"),
        74_000_000,
        {"near": 1.0, "far": 50.0},
    )
    check(session.run(x), x, default)
    small = session.configure("small")
    assert (small.macs, small.decoders) == (10_000_000, {"near": 0.25, "far": 0.5})
    assert small.encoder == {"stage1": 0.5, "stage2": 0.25}
    assert session.configuration is small
    check(session.run(x), x, small)
    check(session.run(x, "far"), x, small)
    assert session.programs() == ("trunk@narrow", "neck@narrow", "head-near@narrow-0.25", "head-far@narrow-0.5")
    assert session.programs("near") == ("trunk@narrow", "head-near@narrow-0.25")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.configure("smal"), "no configuration 'smal'; did you mean 'small'?"),
        (lambda s: s.configure(), "configure takes the name of a configuration or a budget, such as budget='40%'"),
        (lambda s: s.configure("small", budget=5), "configure takes a name alone"),
        (lambda s: s.configure("small", prefer={"near": 1}), "configure takes a name alone"),
        (lambda s: s.configure(prefer={"near": 1}), "configure takes the name of a configuration or a budget"),
        (lambda s: s.configure(budget="lots"), "budget = 'lots': write"),
        (lambda s: s.configure(budget="9M"), "budget 9 MMACs is under the least that can run: 10 MMACs (14 % of"),
        (lambda s: s.configure(budget="9%"), "budget 6.66 MMACs is under the least that can run: 10 MMACs (14 % of"),
        (
            lambda s: s.configure(budget="50%", prefer={"nera": 1}),
            "prefer: 'nera' is not one of the tasks that run; did",
        ),
        (lambda s: s.configure(budget="50%", prefer={"far": 1}, tasks="near"), "prefer: 'far' is not one of the tasks"),
        (lambda s: s.configure(budget="50%", tasks=["farr"]), "no task 'farr'; did you mean 'far'?"),
        (lambda s: s.configure(budget="50%", tasks=[]), "no task to run: name one or more of near, far"),
        (lambda s: s.load("smal"), "no configuration 'smal'; did you mean 'small'?"),
        (lambda s: s.governor(0), "target_ms = 0: must be a number of ms above 0"),
        (lambda s: s.governor("5"), "target_ms = '5': must be a number of ms above 0"),
        (lambda s: s.governor(5, window=0), "window = 0: must be a number of runs, 1 or more"),
        (lambda s: s.governor(5, margin=1.0), "margin = 1.0: must be a fraction"),
        (
            lambda s: s.calibrate(np.zeros((1, 3, 20, 20), np.float32), rounds=0),
            "rounds = 0: must be a whole number, 1 or more",
        ),
    ],
)
def test_what_cannot_be_configured(session, call, message):
    before = session.configuration
    with pytest.raises(UserError) as caught:
        call(session)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert session.configuration is before


def test_a_budget_by_hand(session, x):
    """The widest costs 74 M, so 45 % is 33.3 M. The wide encoder alone costs 42 M. The middle one (22 M) fits with near
    at 0.25 and far at 1 (2 + 8 M, which lose 7.5 %), and with both at 0.5 (8 M, 10 %); the narrow one gains less.
    """
    chosen = session.configure(budget="45%")
    assert chosen == ActiveConfiguration(
        None,
        {"stage1": 1.0, "stage2": 0.5},
        {"near": 0.25, "far": 1.0},
        ("near", "far"),
        32_000_000,
        {"near": slim_metric("near", "middle", 0.25), "far": slim_metric("far", "middle", 1.0)},
    )
    check(session.run(x), x, chosen)
    assert session.configure(budget="100%").macs == 74_000_000
    assert session.configure(budget=38e6).decoders == {"near": 1.0, "far": 1.0}


def gain_of(metrics, prefer):
    """Against near's 1, an error, and far's 50, a score."""
    gains = {"near": 1.0 - metrics["near"], "far": metrics["far"] / 50 - 1}
    return sum(prefer[task] * gain for task, gain in gains.items()) / sum(prefer.values())


@pytest.mark.parametrize(
    "prefer", [{"near": 1, "far": 1}, {"near": 3, "far": 1}, {"near": 1, "far": 3}, {"near": 1, "far": 0}]
)
def test_no_named_configuration_that_obeys_is_better(tmp_path, prefer):
    """Everything that can run has a name here; at its cost a budget finds what gains as much or more."""
    described = slim_manifest()
    for encoder, near, far in product(ENCODERS, *DECODERS.values()):
        programs = [f"trunk@{encoder}", f"neck@{encoder}", f"head-near@{encoder}-{near}", f"head-far@{encoder}-{far}"]
        decoders = {"near": near, "far": far}
        named = {"name": f"{encoder} {near} {far}", "programs": programs, "encoder": encoder, "decoders": decoders}
        described["configurations"].append(named)
    compared = 0
    with Session(write(tmp_path / "b", slim_payloads(), described)) as session:
        for name in session.configurations:
            named = session.configure(name)
            near, far = named.decoders["near"], named.decoders["far"]
            if prefer["near"] > prefer["far"] and near < far == 1:
                continue
            if prefer["near"] < prefer["far"] and near > far:
                continue
            if prefer["far"] == 0 and far != 0.5:
                continue
            found = session.configure(budget=named.macs, prefer=prefer)
            assert found.macs <= named.macs
            assert gain_of(found.metrics, prefer) >= gain_of(named.metrics, prefer) - 1e-12
            compared += 1
    assert compared >= 10


def test_the_preferred_task_has_the_wider_decoder(session, x):
    near = session.configure(budget="34M", prefer={"near": 1.0})
    assert (near.decoders, near.macs) == ({"near": 1.0, "far": 0.5}, 34_000_000)
    far = session.configure(budget="33M", prefer={"far": 3, "near": 1})
    assert (far.decoders, far.macs) == ({"near": 0.25, "far": 1.0}, 32_000_000)
    check(session.run(x), x, far)


def test_a_task_alone_pays_for_itself(session, x):
    """near alone needs no neck: 20 M and 8 M. far still runs, at its narrowest."""
    chosen = session.configure(budget=28_000_000, tasks="near")
    assert (chosen.macs, chosen.tasks) == (28_000_000, ("near",))
    assert chosen.decoders == {"near": 1.0, "far": 0.5}
    check(session.run(x), x, chosen)
    assert session.configure(budget="50%", tasks="near").macs == 28_000_000  # of 56 M
    with pytest.raises(UserError, match="is under the least"):
        session.configure(budget=5_999_999, tasks=["near"])


@given(
    st.floats(10e6, 80e6),
    st.one_of(st.none(), st.fixed_dictionaries({"near": st.floats(0.01, 1), "far": st.floats(0, 1)})),
    st.sampled_from([None, "near", ["far"], ["far", "near"]]),
)
def test_a_budget_is_kept(session, budget, prefer, tasks):
    asked = set(DECODERS) if tasks is None else {tasks} if isinstance(tasks, str) else set(tasks)
    prefer = None if prefer is None or prefer.keys() != asked else prefer
    active = session.configure(budget=budget, prefer=prefer, tasks=tasks)
    assert active.macs <= budget
    counted = {task: active.decoders[task] if task in asked else None for task in DECODERS}
    assert active.macs == macs_of(encoder_of(active), **counted)
    for task, width in active.decoders.items():
        assert active.metrics[task] == slim_metric(task, encoder_of(active), width)


def test_programs_load_when_first_needed_or_on_request(slim_bundle, x):
    with Session(slim_bundle) as session:
        session.configure("small")
        assert session.loaded == ()
        session.run(x, "near")
        assert session.loaded == ("trunk@narrow", "head-near@narrow-0.25")
        session.load("default")
        assert set(session.loaded) == {
            "trunk@narrow", "head-near@narrow-0.25", "trunk@wide", "neck@wide",
            "head-near@wide-1.0", "head-far@wide-1.0",
        }  # fmt: skip
        session.load()
        assert len(session.loaded) == len(session.manifest.programs) == 21


def test_a_run_ends_in_the_configuration_that_it_began_with(session, x):
    """The session is switched while a run is between its trunk and its decoders."""
    session.configure("default")
    trunk = session._files["trunk@wide.onnx"]
    executable = trunk.executable

    class Switching:
        def run(self, outputs, feeds):
            session.configure("small")
            return executable.run(outputs, feeds)

    trunk.executable = Switching()
    try:
        outputs = session.run(x)
    finally:
        trunk.executable = executable
    assert session.configuration.name == "small"
    check(outputs, x, session.configure("default"))


def test_threads_that_run_while_others_switch(session, x):
    """Every result is that of one configuration as a whole."""
    valid = [
        slim_expected(x, encoder, near, far)
        for encoder in ENCODERS
        for near in DECODERS["near"]
        for far in DECODERS["far"]
    ]
    wrong = []
    barrier = threading.Barrier(4)

    def switch():
        barrier.wait()
        for turn in range(100):
            session.configure(budget=10e6 + turn % 10 * 7e6, prefer={"near": 1 + turn % 3, "far": 1})

    def work():
        barrier.wait()
        for _ in range(50):
            outputs = session.run(x)
            if not any(all(np.allclose(outputs[task], e[task], atol=1e-3) for task in e) for e in valid):
                wrong.append(outputs)

    threads = [threading.Thread(target=target) for target in (switch, work, work, work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Ticks:
    """A clock that says how long each program took: what `cost` gives for the name of the program that ran last."""

    def __init__(self, session, cost):
        self.now, self.cost = 0.0, cost
        self.ran = []
        for file in session._files.values():
            file.executable = self.Timed(self, file.name, file.executable)

    class Timed:
        def __init__(self, ticks, name, executable):
            self.ticks, self.name, self.executable = ticks, name, executable

        def run(self, outputs, feeds):
            self.ticks.now += self.ticks.cost(self.name) / 1000
            self.ticks.ran.append(self.name)
            return self.executable.run(outputs, feeds)

        def close(self):
            self.executable.close()

    def __call__(self):
        return self.now


def test_budgets_in_ms(slim_bundle, x):
    """ms that are not in proportion to the MACs: the narrow encoder is slower here than the middle one."""
    slow = {"trunk@wide": 10.0, "trunk@middle": 4.0, "trunk@narrow": 5.0}
    with Session(slim_bundle, eager=True) as session:
        for refused in ("6ms", "0.006s"):
            with pytest.raises(UserError) as caught:
                session.configure(budget=refused)
            assert (
                str(caught.value)
                == f"budget = '{refused}': call calibrate(x) first, so that this device's ms are known"
            )
        ticks = Ticks(session, lambda name: slow.get(name, 0.5))
        medians = session.calibrate(x, rounds=3, clock=ticks)
        assert medians == pytest.approx({p.name: slow.get(p.name, 0.5) for p in session.manifest.programs})
        chosen = session.configure(budget="5.6ms")  # 4 + neck 0.5 + two heads 1
        assert encoder_of(chosen) == "middle"
        assert chosen.decoders == {"near": 1.0, "far": 1.0}
        assert encoder_of(session.configure(budget="100ms")) == "wide"
        assert encoder_of(session.configure(budget="4.6ms", tasks="near")) == "middle"
        with pytest.raises(
            UserError, match=r"budget 5 ms is under the least that can run: 5\.5 ms \(48 % of the widest, 11"
        ):
            session.configure(budget="5ms")
        assert session.configure(budget="50%").macs == 34_000_000  # shares stay shares of the MACs


def test_the_rungs_of_a_ladder_are_apart(slim_bundle, x):
    """A decoder takes as many ms as it is wide, the encoders 100, 50 and 20: of what runs with one of the first two,
    all within 5 %, the widest is a rung; of the last, 22 ms and the narrowest, 20.75."""
    trunks = {"trunk@wide": 100.0, "trunk@middle": 50.0, "trunk@narrow": 20.0}

    def cost(name):
        return trunks.get(name, float(name.rpartition("-")[2]) if name.startswith("head") else 0.0)

    with Session(slim_bundle, eager=True) as session:
        assert len(session.governor(5.0).ladder) > 4  # in MACs
        session.calibrate(x, rounds=1, clock=Ticks(session, cost))
        ladder = session.governor(5.0).ladder
        assert [encoder_of(configuration) for configuration in ladder] == ["narrow", "narrow", "middle", "wide"]
        widest = {"near": 1.0, "far": 1.0}
        assert [c.decoders for c in ladder] == [{"near": 0.25, "far": 0.5}, widest, widest, widest]


def test_calibration_is_of_medians_of_warm_runs(slim_bundle, x):
    """Each program's first run costs 50 ms, one of five the double: neither is in the median."""
    with Session(slim_bundle, eager=True) as session:
        counts: dict[str, int] = {}

        def cost(name):
            counts[name] = counts.get(name, -1) + 1
            return 50.0 if counts[name] == 0 else 2.0 if counts[name] % 5 == 0 else 1.0

        ticks = Ticks(session, cost)
        assert list(session.calibrate(x, rounds=1, clock=ticks).values()) == pytest.approx([1.0] * 21)
        # The two named configurations, and what they leave of three widths of three encoders; four programs, run twice.
        assert len(ticks.ran) == 9 * 4 * 2
        assert list(session.calibrate(x, rounds=5, clock=ticks).values()) == pytest.approx([1.0] * 21)


def test_a_second_calibration_counts(slim_bundle, x):
    with Session(slim_bundle, eager=True) as session:
        for ms, encoder in ((1.0, "wide"), (2.0, "middle")):
            slow = {"trunk@wide": 4 * ms, "trunk@middle": 2 * ms}
            session.calibrate(x, rounds=1, clock=Ticks(session, lambda name, slow=slow: slow.get(name, 0.0)))
            assert encoder_of(session.configure(budget="4.5ms")) == encoder


def test_switching_takes_less_than_a_millisecond(session):
    """CPU time, the median of many: a busy machine must not fail this."""
    preferences = [{"near": 1.0 + i / 100, "far": 1.0} for i in range(50)]
    by_budget, by_name = [], []
    for prefer in preferences:
        begun = time.process_time()
        session.configure(budget="50%", prefer=prefer)
        by_budget.append(time.process_time() - begun)
        begun = time.process_time()
        session.configure("default")
        by_name.append(time.process_time() - begun)
    assert sorted(by_budget)[25] < 0.001
    assert sorted(by_name)[25] < 0.001


def test_a_closed_session_is_not_switched(slim_bundle, x):
    session = Session(slim_bundle)
    governor = session.governor(1000.0)
    session.close()
    for call in (
        lambda: session.configure("small"), lambda: session.load(),
        lambda: session.calibrate(x), lambda: governor.run(x),
    ):  # fmt: skip
        with pytest.raises(UserError, match="the session is closed"):
            call()


def test_a_fused_configuration_that_names_no_encoder(tmp_path, x):
    """A configuration may list programs alone; the session then knows no widths of it."""
    described = json.loads(json.dumps(slim_manifest()))
    for key in ("encoder", "decoders"):
        del described["configurations"][0][key]
    with Session(write(tmp_path / "b", slim_payloads(), described)) as session:
        assert session.configuration == ActiveConfiguration("default", {}, {}, ("near", "far"), 74_000_000, {})
        np.testing.assert_allclose(session.run(x)["near"], 4 * x + 1, rtol=1e-5, atol=1e-5)


def test_openvino_switches_too(slim_bundle, x):
    pytest.importorskip("openvino")
    with Session(slim_bundle, backend="openvino", threads=1) as session:
        check(session.run(x), x, session.configuration)
        chosen = session.configure(budget="50%")
        check(session.run(x), x, chosen)
