"""A mixture-of-experts transformer on an FPGA accelerator: a model of the accelerator, simulated with real routing.

`accelerator` reads a description, `network` the shape of what runs, `routing` where its tokens go; `simulator` plays a
frame on the accelerator, `closed_form` says what the published formula gives, `resources` whether a board holds it, and
`search` tries other arrays and buffers. Every time that leaves this package is ``"modelled"``: the cycles are counted
by a simulation that no RTL was compared with.
"""
