"""Reads and checks the description of an accelerator: a TOML file for each, with units in the names or beside them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from mtlc.errors import UserError, nearest
from mtlc.toml_files import parse_toml, read_text, validated

Policy = Literal["dense", "cache", "resident", "reordered"]
"""How experts run: `dense` has none (a perceptron of the same MACs), `cache` token by token with an LRU cache of
experts, `resident` with all experts of a layer on the chip, `reordered` expert by expert with ping and pong buffers.
"""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LinearArray(_Section):
    """Multiplies `inputs` features of a token with the weights of `outputs` outputs in each cycle."""

    outputs: PositiveInt
    inputs: PositiveInt

    @property
    def macs(self) -> int:
        """MACs per cycle."""
        return self.outputs * self.inputs

    def cycles(self, tokens: int, outputs: int, inputs: int) -> int:
        """Cycles of a linear layer on `tokens`: a partly filled tile takes a whole cycle."""
        return tokens * -(-outputs // self.outputs) * -(-inputs // self.inputs)


class AttentionArray(_Section):
    """Multiplies `inputs` dimensions of one key, of whatever head, with those of `queries` queries at a time."""

    queries: PositiveInt
    inputs: PositiveInt
    shared: bool = False
    """Whether these are the multipliers of the linear array, and not its neighbours."""


class Weights(_Section):
    """`buffers` of `buffer_bytes` each for matrices; what does not fit one is cut along its outputs.

    `prefetch` loads the next layer's weights while a layer runs. `prefetch_first_expert` loads the first expert before
    the gate has spoken; if no token takes it, the load was for nothing, and is counted.
    """

    buffers: PositiveInt
    buffer_bytes: PositiveInt
    load_unit: Literal["matrix", "expert"] = "matrix"
    prefetch: bool = True
    prefetch_first_expert: bool = False


class LruSettings(_Section):
    """For the policy `cache`: how many experts the LRU cache holds, and whether those that are in it come first."""

    cache: PositiveInt = 1
    lookup: Literal["in_order", "hits_first"] = "in_order"


class Ddr(_Section):
    """Bandwidth in GB/s (1e9), ports in bytes per cycle. `stream_keys`: the activation port brings keys and values."""

    bandwidth_gbs: PositiveFloat
    weight_port_bytes: PositiveInt
    activation_port_bytes: int = Field(0, ge=0)
    stream_keys: bool = False


class Bits(_Section):
    weights: PositiveInt = 16
    activations: PositiveInt = 16


class Vector(_Section):
    """Cycles for an element of a norm or a residual sum, and for an exp or erf that is not pipelined."""

    cycles_per_element: float = Field(0.0, ge=0)
    function_cycles: int = Field(0, ge=0)


class Techniques(_Section):
    """Edge-MoE's techniques, each of which can be left out. Expert reordering is a policy, not one of these.

    Without `patch_reorder` a perceptron runs token by token, and weights that do not fit one buffer are loaded anew for
    each; without `attention_reorder` keys stream once for each query; without `single_pass_softmax` and `gelu_table` an
    exp and an erf that are not pipelined run for each element; without `unified_linear` the array is `separate`.
    """

    patch_reorder: bool = True
    single_pass_softmax: bool = True
    gelu_table: bool = True
    unified_linear: bool = True
    attention_reorder: bool = True


class EngineArray(_Section):
    """The engine of `mtlc.hw.rtl` for all linear layers: their cycles are the Verilog's. Its memories fit."""

    rows: PositiveInt
    columns: PositiveInt


class Accelerator(_Section):
    """An accelerator. With an `engine`, linear layers and experts run on it. `gates` says where the routers' weights
    are: ``streamed`` from DDR for every layer, ``all_tasks`` on the chip, or those of the ``current_task``, which a
    switch reloads before its frame starts. `in_reports`: whether a run's report shows it among those of its board.
    """

    title: str
    board: str
    clock_mhz: PositiveFloat
    gates: Literal["streamed", "all_tasks", "current_task"] = "streamed"
    in_reports: bool = True
    linear: LinearArray
    attention: AttentionArray
    weights: Weights
    experts: LruSettings = LruSettings()
    ddr: Ddr
    bits: Bits = Bits()
    vector: Vector = Vector()
    techniques: Techniques = Techniques()
    separate: LinearArray | None = None
    engine: EngineArray | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Accelerator:
        # Bytes per cycle on both sides: GB/s over MHz. The ports run at once, so it is their sum that the memory must
        # give.
        ports = self.ddr.weight_port_bytes + self.ddr.activation_port_bytes
        given = self.ddr.bandwidth_gbs * 1e3 / self.clock_mhz
        if ports > given * (1 + 1e-6):
            raise ValueError(f"[ddr] the ports take {ports} bytes a cycle, but the memory gives {given:.1f}")
        if self.ddr.stream_keys and not self.ddr.activation_port_bytes:
            raise ValueError("[ddr] stream_keys needs an activation_port_bytes above 0")
        if not self.techniques.unified_linear and self.separate is None:
            raise ValueError("[techniques] unified_linear = false needs a section [separate]")
        if self.engine is not None:
            if self.engine.rows * self.engine.columns != self.linear.macs:
                raise ValueError(
                    "[linear] has other multipliers than [engine]: outputs * inputs must be rows * columns"
                )
            if self.bits.weights != 8 or self.bits.activations != 8:
                raise ValueError("[bits] the engine computes with 8 bits")
            if self.weights.prefetch or self.weights.prefetch_first_expert:
                raise ValueError("[weights] prefetch: the engine streams its weights itself; set both to false")
            if self.techniques != Techniques() or self.separate is not None:
                raise ValueError("[techniques] and [separate] say nothing of the engine: leave them out")
        return self

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies that it can follow: the engine streams every expert, and keeps none."""
        return ("dense", "reordered") if self.engine is not None else get_args(Policy)

    @property
    def array(self) -> LinearArray:
        """The array that linear layers run on."""
        if self.techniques.unified_linear or self.separate is None:
            return self.linear
        return self.separate

    def ms(self, cycles: float) -> float:
        """Milliseconds of `cycles` at the clock."""
        return cycles / (self.clock_mhz * 1e3)

    def load_cycles(self, size: int) -> int:
        """Cycles in which `size` bytes come over the weight port."""
        return -(-size // self.ddr.weight_port_bytes)

    def weight_bytes(self, count: int) -> int:
        return -(-count * self.bits.weights // 8)

    def changed(self, **sections: dict[str, object] | object) -> Accelerator:
        """A copy with other values, ``changed(linear={"inputs": 8}, clock_mhz=200)``, checked like a file."""
        # Sections are merged key by key, and the whole is checked again: changes that agree alone may not agree
        # together.
        values = self.model_dump()
        for name, change in sections.items():
            old = values.get(name)
            values[name] = {**old, **change} if isinstance(old, dict) and isinstance(change, dict) else change
        made: Accelerator = validated(lambda: Accelerator.model_validate(values), Accelerator, "accelerator")
        return made


def accelerators() -> tuple[str, ...]:
    """The names of the accelerators that come with mtlc."""
    return tuple(sorted(_own()))


def accelerator(name: str | Path) -> Accelerator:
    """The accelerator of this name, or of this TOML file. Raises `UserError` that names the file and the key."""
    own = _own()
    if str(name) in own:
        text, where = own[str(name)], f"{name}.toml"
    elif str(name).endswith(".toml"):
        text, where = read_text(Path(name)), Path(name).name
    else:
        raise UserError(f"no accelerator {str(name)!r}{nearest(str(name), own)}; or give the path of a .toml file")
    values = parse_toml(text, where)
    made: Accelerator = validated(lambda: Accelerator.model_validate(values), Accelerator, where)
    return made


def _own() -> dict[str, str]:
    folder = files("mtlc.hw.fpga").joinpath("accelerators")
    return {
        entry.name.removesuffix(".toml"): entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    }
