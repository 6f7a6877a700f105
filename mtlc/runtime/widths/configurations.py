"""Lists the configurations of a bundle: the named ones, and every encoder with every width of its decoders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from mtlc.errors import UserError, nearest
from mtlc.runtime.bundle.manifest import Manifest

if TYPE_CHECKING:
    from mtlc.runtime.bundle.manifest import DecoderPoint, EncoderPoint, Manifest, ProgramInfo, Widths
    from mtlc.runtime.widths.width_choice import Choice, Chooser, Unit

P = TypeVar("P")

_KEPT = 256
"""Setups that are kept for the next time they are chosen."""


@dataclass(frozen=True)
class ActiveConfiguration:
    """How a bundle runs. `name` is None where widths were chosen by a budget.

    `encoder` is the width of every stage, `decoders` that of every task's decoder, `metrics` each task's metric on
    held-out data with these widths; they are empty where the bundle does not say. `macs` are those of one sample of
    `tasks`, or None where the bundle does not say.
    """

    name: str | None
    encoder: Mapping[str, float]
    decoders: Mapping[str, float]
    tasks: tuple[str, ...]
    macs: int | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Setup(Generic[P]):
    """A configuration ready to run: its programs in their order, and the plans made of them so far, by tasks."""

    configuration: ActiveConfiguration
    programs: tuple[ProgramInfo, ...]
    plans: dict[tuple[str, ...] | None, P] = field(default_factory=dict)


class Configurations(Generic[P]):
    """The setups of one bundle, each made once. `path` is for messages. May be used from several threads at once."""

    def __init__(self, manifest: Manifest, path: str) -> None:
        self._manifest, self._path = manifest, path
        self._programs = {program.name: program for program in manifest.programs}
        self._encoders = {} if manifest.widths is None else {e.name: e for e in manifest.widths.encoders}
        # A bundle without widths runs all of its programs, whatever else it lists.
        known = [c for c in manifest.configurations if manifest.widths is not None or c.name == "default"]
        self._by_name = {configuration.name: configuration for configuration in known}
        self._named: dict[str, Setup[P]] = {}
        self._chosen: dict[tuple[str, tuple[tuple[str, float], ...], tuple[str, ...]], Setup[P]] = {}
        self._costed: dict[tuple[tuple[str, ...], Unit], tuple[Mapping[str, float] | None, Chooser]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    def check_tasks(self, tasks: tuple[str, ...]) -> None:
        """Raise `UserError` for none, or for one that the bundle does not have."""
        known = self._manifest.tasks
        if not tasks:
            raise UserError(f"no task to run: name one or more of {', '.join(known)}")
        for task in tasks:
            if task not in known:
                raise UserError(f"{self._path}: no task {task!r}{nearest(str(task), known)}")

    def named(self, name: str) -> Setup[P]:
        """The configuration called `name`. Raises `UserError` if there is none."""
        setup = self._named.get(name)
        if setup is None:
            if name not in self._by_name:
                raise UserError(f"{self._path}: no configuration {name!r}{nearest(str(name), self._by_name)}")
            configuration, tasks = self._by_name[name], tuple(self._manifest.tasks)
            if configuration.encoder is not None:
                encoder = self._encoders[configuration.encoder]
                setup = self._setup(name, encoder, _points(encoder, configuration.decoders), tasks)
            else:
                every = self._manifest.programs
                if self._manifest.widths is not None:
                    every = tuple(self._programs[program] for program in configuration.programs)
                setup = Setup(ActiveConfiguration(name, {}, {}, tasks, _macs(every), {}), every)
            self._named[name] = setup
        return setup

    def prepare(self) -> None:
        """Do what the first budget would have to wait for."""
        if self._manifest.widths is not None:
            self._chooser(tuple(self._manifest.tasks), None)

    def within(
        self,
        budget: str | float,
        prefer: Mapping[str, float] | None,
        tasks: Iterable[str] | str | None,
        medians: Mapping[str, float] | None,
    ) -> Setup[P]:
        """The widths that `Chooser` chooses. `medians` are the ms of the programs, None before they are measured."""
        from mtlc.runtime.widths.width_choice import WidthBudget, normalised_preference

        self._widths()
        asked, amount = self._asked(tasks), WidthBudget.parse(budget)
        if amount.unit == "ms" and medians is None:
            raise UserError(f"budget = {budget!r}: call calibrate(x) first, so that this device's ms are known")
        unit: Unit = "ms" if amount.unit == "ms" else "MACs"
        chooser = self._chooser(asked, medians if unit == "ms" else None)
        value = amount.value * chooser.widest if amount.unit == "share" else amount.value
        return self._of(chooser.choose(normalised_preference(prefer, asked), value, unit), asked)

    def ladder(
        self,
        prefer: Mapping[str, float] | None,
        tasks: Iterable[str] | str | None,
        medians: Mapping[str, float] | None,
    ) -> list[tuple[Setup[P], Choice]]:
        """Widths that no others beat in cost and gain, from cheap to dear: ms if they are measured, or MACs.

        They are spaced: each needs programs that stay loaded, and a step of a few per cent is within the noise of a
        run.
        """
        from mtlc.runtime.widths.width_choice import normalised_preference, spaced

        self._widths()
        asked = self._asked(tasks)
        front = self._chooser(asked, medians).front(normalised_preference(prefer, asked))
        return [(self._of(choice, asked), choice) for choice in spaced(front)]

    def covering(self) -> list[Setup[P]]:
        """Setups that between them run every program of every configuration."""
        tasks = tuple(self._manifest.tasks)
        setups = [self.named(name) for name in self._by_name]
        for encoder in self._encoders.values():
            # One setup for each place in the rows of widths: all decoders step together, those with fewer stay at their
            # last.
            for place in range(max(len(row) for row in encoder.decoders.values())):
                points = {task: row[min(place, len(row) - 1)] for task, row in encoder.decoders.items()}
                setups.append(self._setup(None, encoder, points, tasks))
        covered: set[str] = set()
        least = []
        for setup in setups:
            names = {program.name for program in setup.programs}
            # Greedy and in order: a setup that would load nothing new is left out.
            if not names <= covered:
                covered |= names
                least.append(setup)
        return least

    def _widths(self) -> Widths:
        if self._manifest.widths is None:
            raise UserError(
                f"{self._path}: the bundle runs at one width only: make one with several by `mtlc slim`, "
                "or use configure('default')"
            )
        return self._manifest.widths

    def _asked(self, tasks: Iterable[str] | str | None) -> tuple[str, ...]:
        """The tasks in the bundle's order, each once."""
        if tasks is None:
            return tuple(self._manifest.tasks)
        asked = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        self.check_tasks(asked)
        return tuple(task for task in self._manifest.tasks if task in asked)

    def _chooser(self, tasks: tuple[str, ...], medians: Mapping[str, float] | None) -> Chooser:
        """What chooses by the costs of running `tasks`: ms by `medians`, MACs if that is None."""
        from mtlc.runtime.widths.width_choice import Chooser, Decoder, Encoder, relative_gain

        widths = self._widths()
        # A new calibration is a new mapping: identity tells whether costs of this one were prepared.
        key: tuple[tuple[str, ...], Unit] = (tasks, "MACs" if medians is None else "ms")
        if key in self._costed and self._costed[key][0] is medians:
            return self._costed[key][1]
        asked = set(tasks)

        def cost(names: Iterable[str]) -> float:
            programs = [self._programs[name] for name in names]
            needed = [program for program in programs if not asked.isdisjoint(program.tasks)]
            return sum((program.macs or 0) if medians is None else medians[program.name] for program in needed)

        encoders = []
        for encoder in widths.encoders:
            decoders = {}
            for task in tasks:
                better, reference = widths.higher_is_better[task], widths.reference[task]
                decoders[task] = [
                    Decoder(point.width, cost(point.programs), relative_gain(point.metric, reference, better))
                    for point in encoder.decoders[task]
                ]
            encoders.append(Encoder(encoder.name, cost(encoder.programs), decoders))
        chooser = Chooser(encoders)
        self._costed[key] = (medians, chooser)
        return chooser

    def _of(self, choice: Choice, tasks: tuple[str, ...]) -> Setup[P]:
        key = (choice.encoder, tuple(choice.decoders.items()), tasks)
        setup = self._chosen.get(key)
        if setup is None:
            encoder = self._encoders[choice.encoder]
            # A setup names a width for every task; those that were not asked for do not run, and get what costs least.
            narrowest = {task: row[0].width for task, row in encoder.decoders.items()}
            setup = self._setup(None, encoder, _points(encoder, narrowest | dict(choice.decoders)), tasks)
            # Setups are cheap to make again, so all go at once and no order of use has to be kept.
            if len(self._chosen) >= _KEPT:
                self._chosen = {}
            self._chosen[key] = setup
        return setup

    def _setup(
        self, name: str | None, encoder: EncoderPoint, points: Mapping[str, DecoderPoint], tasks: tuple[str, ...]
    ) -> Setup[P]:
        names = [*encoder.programs]
        for task in self._manifest.tasks:
            names += points[task].programs
        programs = tuple(self._programs[program] for program in names)
        configuration = ActiveConfiguration(
            name,
            dict(zip(self._widths().stages, encoder.widths, strict=True)),
            {task: points[task].width for task in self._manifest.tasks},
            tasks,
            _macs([program for program in programs if not set(tasks).isdisjoint(program.tasks)]),
            {task: points[task].metric for task in self._manifest.tasks},
        )
        return Setup(configuration, programs)


def _points(encoder: EncoderPoint, widths: Mapping[str, float]) -> dict[str, DecoderPoint]:
    return {task: next(point for point in row if point.width == widths[task]) for task, row in encoder.decoders.items()}


def _macs(programs: Iterable[ProgramInfo]) -> int | None:
    known = [program.macs for program in programs]
    return None if None in known else sum(macs for macs in known if macs is not None)


def check_configuration(path: Path, manifest: Manifest, name: str) -> None:
    """Raise `UserError` unless the bundle at `path` can run in the configuration called `name`."""
    if manifest.widths is None:
        if name != "default":
            raise UserError(
                f"{path}: has no configuration {name!r}: it runs at one width only "
                "(`mtlc slim` makes bundles of several): leave out --configuration"
            )
        return
    known = [configuration.name for configuration in manifest.configurations]
    if name not in known:
        raise UserError(f"{path}: no configuration {name!r}{nearest(name, known)}")
