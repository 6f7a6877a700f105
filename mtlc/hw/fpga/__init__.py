"""A mixture-of-experts transformer on an FPGA accelerator: a model of the accelerator, simulated with real routing.

`accelerator` reads a description, `network` the shape of what runs, `routing` where its tokens go; `simulator` plays a
frame on the accelerator, `closed_form` says what the published formula gives, `resources` whether a board holds it, and
`search` tries other arrays and buffers. Times are ``"simulated"`` where routing was recorded from a network and ``"modelled"``
where it was drawn, never measured. RTL was compared only with the linear layers of an accelerator that has the engine of `mtlc.hw.rtl`.
"""
