"""States what every runtime backend must do, whatever it is built on. A backend's tests derive from it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from mtlc.errors import BundleError, UserError
from mtlc.runtime import Session
from testkit import tiny_networks
from testkit.backend_samples import Arrays, Case

CASES = ("cnn", "cnn-fused", "experts-queue", "experts-masked", "two-inputs", "widths")


def close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


class BackendSpecification:
    """Derive, and set `backend`; `tolerance` is relative to an output's largest value in float32."""

    backend: ClassVar[str]
    tolerance: ClassVar[float] = 1e-5
    int8_tolerance: ClassVar[Mapping[str, float]] = {"depth": 0.1, "semseg": 0.15}
    """By task: the largest root mean square of INT8's error, relative to that of the float32 output."""

    @pytest.fixture(params=CASES)
    def case(self, request: pytest.FixtureRequest, cases: Mapping[str, Case]) -> Case:
        return cases[request.param]

    @pytest.fixture
    def int8(self, int8_cases: Mapping[str, Case]) -> Case:
        return int8_cases["x86"]

    @pytest.fixture
    def session(self, case: Case) -> Iterator[Session]:
        with self.open(case) as session:
            yield session

    def open(self, case: Case, **options: Any) -> Session:
        return Session(case.path, backend=self.backend, **{"threads": 1, **options})

    def check(self, case: Case, found: Arrays, inputs: Arrays, configuration: str = "default") -> None:
        expected = case.expected(inputs, configuration)
        for task, array in found.items():
            close(array, expected[task], self.tolerance)

    def test_all_tasks_at_any_batch(self, case: Case, session: Session) -> None:
        for batch in (1, 3, 5, 1):
            inputs = case.inputs(batch, seed=batch)
            found = session.run(inputs)
            assert tuple(found) == case.tasks
            self.check(case, found, inputs)

    def test_every_subset_of_the_tasks(self, case: Case, session: Session) -> None:
        inputs = case.inputs(3)
        for count in range(1, len(case.tasks) + 1):
            for tasks in combinations(case.tasks, count):
                found = session.run(inputs, tasks)
                assert tuple(found) == tasks
                self.check(case, found, inputs)

    def test_names_count_and_positions_do_not(self, case: Case, session: Session) -> None:
        inputs = case.inputs(2)
        turned = {name: inputs[name] for name in reversed(inputs)}
        found = session.run(turned, tuple(reversed(case.tasks)))
        assert tuple(found) == tuple(reversed(case.tasks))
        self.check(case, found, inputs)

    def test_only_the_programs_that_are_needed_are_loaded(self, case: Case, session: Session) -> None:
        assert session.loaded == ()
        session.run(case.inputs(1), case.tasks[0])
        assert set(session.programs(case.tasks[0])) <= set(session.loaded)
        assert not any(session.manifest.tasks[case.tasks[1]].output in p.outputs for p in self._loaded_alone(session))

    @staticmethod
    def _loaded_alone(session: Session) -> list[Any]:
        """The loaded programs that share their file with no other."""
        programs = [p for p in session.manifest.programs if p.name in session.loaded]
        files = [p.file for p in programs]
        return [p for p in programs if files.count(p.file) == 1 and len(p.tasks) == 1]

    def test_arrays_belong_to_the_caller(self, case: Case, session: Session) -> None:
        inputs = case.inputs(2)
        given = {name: array.copy() for name, array in inputs.items()}
        first = session.run(given)
        kept = {task: array.copy() for task, array in first.items()}
        for name, array in given.items():
            np.testing.assert_array_equal(array, inputs[name])
            array[:] = 0
        session.run(given)
        for task, array in first.items():
            np.testing.assert_array_equal(array, kept[task])
            array[:] = 7
        self.check(case, session.run(inputs), inputs)

    def test_inputs_need_not_be_contiguous(self, case: Case, session: Session) -> None:
        inputs = case.inputs(2)
        strided = {name: np.repeat(array, 2, axis=-1)[..., ::2] for name, array in inputs.items()}
        assert not any(array.flags.c_contiguous for array in strided.values())
        self.check(case, session.run(strided), inputs)

    def test_inputs_may_be_read_only(self, case: Case, session: Session) -> None:
        inputs = case.inputs(2)
        given = {name: array.copy() for name, array in inputs.items()}
        for array in given.values():
            array.flags.writeable = False
        self.check(case, session.run(given), inputs)

    def test_threads_do_not_mix(self, case: Case, session: Session) -> None:
        """Calls from four threads, with other inputs, batches and tasks, each get their own numbers."""
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                inputs = case.inputs(1 + number % 3, seed=10 + number)
                task = case.tasks[number % len(case.tasks)]
                for _ in range(5):
                    self.check(case, session.run(inputs, task), inputs)
            except BaseException as error:
                failures.append(error)

        workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert failures == []

    @pytest.mark.parametrize("threads", [None, 2])
    def test_any_number_of_threads(self, case: Case, threads: int | None) -> None:
        inputs = case.inputs(2)
        with self.open(case, threads=threads) as session:
            self.check(case, session.run(inputs), inputs)

    def test_a_batch_that_is_always_the_same(self, case: Case) -> None:
        inputs = case.inputs(2)
        with self.open(case, batch=2) as session:
            for tasks in (None, case.tasks[0], None):
                self.check(case, session.run(inputs, tasks), inputs)
            with pytest.raises(UserError, match="has 3 samples, the session was opened with batch = 2"):
                session.run(case.inputs(3))
            self.check(case, session.run(inputs), inputs)

    def test_int8_stays_within_each_tasks_tolerance(self, int8: Case) -> None:
        inputs = int8.inputs(3, seed=5)
        expected = int8.expected(inputs)
        with self.open(int8) as session:
            found = session.run(inputs)
            assert session.manifest.quantization is not None
            for task, tolerance in self.int8_tolerance.items():
                error = np.sqrt(np.mean((found[task] - expected[task]) ** 2) / np.mean(expected[task] ** 2))
                assert 1e-4 < error <= tolerance, task
                np.testing.assert_allclose(
                    session.run(inputs, task)[task], found[task], atol=1e-3 * np.abs(found[task]).max()
                )

    def test_int8_stays_within_each_tasks_tolerance_in_every_configuration(self, int8_widths: Case) -> None:
        inputs = {"image": tiny_networks.images(3, 32, seed=5).numpy()}  # such as it was calibrated on
        with self.open(int8_widths) as session:
            assert session.manifest.quantization is not None
            for name in [*int8_widths.programs, *reversed(int8_widths.programs)]:
                assert session.configure(name).name == name
                expected = int8_widths.expected(inputs, name)
                for task, array in session.run(inputs).items():
                    error = np.sqrt(np.mean((array - expected[task]) ** 2) / np.mean(expected[task] ** 2))
                    assert 1e-4 < error <= self.int8_tolerance[task], (name, task)

    def test_configurations(self, cases: Mapping[str, Case]) -> None:
        case = cases["widths"]
        assert len(case.programs) > 1
        with self.open(case) as session:
            for name in [*case.programs, *reversed(case.programs)]:
                assert session.configure(name).name == name
                inputs = case.inputs(2, seed=3)
                self.check(case, session.run(inputs), inputs, name)

    def test_loading_everything_first_changes_no_number(self, case: Case) -> None:
        inputs = case.inputs(2)
        with self.open(case) as lazy, self.open(case, eager=True) as eager:
            assert set(eager.loaded) == {program.name for program in eager.manifest.programs}
            one, two = lazy.run(inputs), eager.run(inputs)
        for task in case.tasks:
            np.testing.assert_array_equal(one[task], two[task])

    def test_a_closed_session_says_so(self, case: Case) -> None:
        session = self.open(case)
        session.run(case.inputs(1))
        session.close()
        session.close()
        with pytest.raises(UserError, match="the session is closed"):
            session.run(case.inputs(1))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda x: {**x, next(iter(x)): next(iter(x.values())).astype(np.float64)},
                "is float64, the bundle takes float32",
            ),
            (lambda x: {**x, next(iter(x)): next(iter(x.values()))[:, :2]}, "has shape"),
            (lambda x: {**x, next(iter(x)): next(iter(x.values()))[:0]}, "has shape"),
            (lambda x: {**x, "other": next(iter(x.values()))}, "no input 'other'"),
            (lambda x: {**x, next(iter(x)): None}, "is missing"),
        ],
        ids=["dtype", "channels", "no sample", "unknown", "missing"],
    )  # fmt: skip
    def test_wrong_inputs(self, case: Case, session: Session, change: Any, message: str) -> None:
        with pytest.raises(UserError, match=message):
            session.run(change(case.inputs(2)))
        self.check(case, session.run(case.inputs(2)), case.inputs(2))  # and nothing is broken by it

    def test_wrong_tasks(self, case: Case, session: Session) -> None:
        with pytest.raises(UserError, match="no task 'sky'"):
            session.run(case.inputs(1), "sky")
        with pytest.raises(UserError):
            session.run(case.inputs(1), ())

    def test_a_file_that_is_damaged(self, cases: Mapping[str, Case], tmp_path: Path) -> None:
        shutil.copytree(cases["cnn"].path, tmp_path / "bundle")
        program = next((tmp_path / "bundle").glob("*.onnx"))
        program.write_bytes(program.read_bytes()[:-1] + b"\0")
        with pytest.raises(BundleError, match=program.name):
            Session(tmp_path / "bundle", backend=self.backend)
