"""Describes a network of the suite, and collects those of a module: `Case`, `Collection`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

Kind = Literal["block", "backbone", "detector", "multi-task"]


@dataclass(frozen=True)
class Case:
    """A network of the suite.

    `about` says in a few words what is difficult about it. `shape` is that of one input without the batch. `ignore`
    are outputs that are no task. `refused` is a part of the message where `mtlc plan` has to refuse the network.
    `may` names, verb by verb, a part of the message where another one may refuse it. `experts` is whether the pass
    ``extract`` has something to do.
    """

    name: str
    kind: Kind
    about: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 32, 32)
    ignore: tuple[str, ...] = ()
    refused: str | None = None
    experts: bool = False
    may: Mapping[str, str] = field(default_factory=dict)

    def may_refuse(self, verb: str, message: str) -> bool:
        """Whether the suite expects that a verb refuses the network with that message."""
        expected = self.refused if verb == "plan" or self.refused is not None else self.may.get(verb)
        return expected is not None and expected in message


class Collection(dict[str, Case]):
    """The networks of one module by name; its decorator adds one. Names begin with `prefix`."""

    def __init__(self, prefix: str = "") -> None:
        super().__init__()
        self._prefix = prefix

    def add(
        self,
        kind: Kind,
        about: str,
        *,
        size: int = 32,
        shape: tuple[int, ...] | None = None,
        ignore: tuple[str, ...] = (),
        refused: str | None = None,
        experts: bool = False,
        may: Mapping[str, str] | None = None,
    ) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
        """Add the network that the decorated function builds; `size` is that of a square picture of three channels."""

        def added(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
            name = self._prefix + build.__name__
            assert name not in self, name
            self[name] = Case(name, kind, about, build, shape or (3, size, size), ignore, refused, experts, may or {})
            return build

        return added
