"""Holds an INT8 engine for expert layers in Verilog, and what it takes to trust it.

The engine itself is in ``*.v``. Beside it:

- `engine` has its shape, and packs a layer's work as the engine is given it; `reference` says in numpy what it must
  answer, to the bit.
- `verilator` runs the Verilog; its cycles are of the Verilog itself, not of a model of it. `cycles` works out the same
  number from the schedule, `published_cycles` from M³ViT's formula. `synthesis` counts what the engine needs of an FPGA
  (yosys).
- `expert_calls` records what a network's experts are given, `quantise` brings them to INT8, `export_experts` does both
  and verifies; `layout` and `c_header` write the files, `exported` reads such a folder and runs it.
"""
