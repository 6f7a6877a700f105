"""An INT8 engine for expert layers in Verilog, with what it takes to trust it.

`engine` is its shape and what it is given, `reference` says in numpy what it must answer, to the bit; `simulator` runs
the Verilog (Verilator), `cycles` works out how long it takes, and `synthesis` what it needs of an FPGA (yosys). Cycles
that `simulator` counts are of the Verilog itself, not of a model of it. `export_experts` brings a network's experts to INT8 and
writes them as `layout` says; `exported` reads such a folder and runs it.
"""
