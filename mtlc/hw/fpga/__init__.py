"""Simulates a mixture-of-experts transformer on a described FPGA accelerator, with real routing.

    accelerator.toml ─→ accelerator ─┐
    network  ─→ hw.routing (shape) ──┼─→ schedule ─→ event_simulation ─→ policy_costs, switching
    samples  ─→ hw.routing (routes) ─┘       │
                                       lru_accesses (which tokens load an expert)

- `accelerator` reads the description of an accelerator.
- `schedule` lists a frame's steps and weight loads, and what waits for what; `lru_accesses` says which of them an
  expert cache saves.
- `event_simulation` plays the schedule and finds out how long everything takes.
- `closed_form` gives the published formulas, which the simulation must agree with where their assumptions hold.
- `resources` says what a design takes of a board, and whether it fits.
- `policy_costs` and `switching` add up what a user asks for: a frame under each policy, and a change of the task.
- `design_search` tries other arrays and buffers.

Times are ``"simulated"`` where routing was recorded from a network and ``"modelled"`` where it was drawn, never
measured. RTL was compared only with the linear layers of an accelerator that has the engine of `mtlc.hw.rtl`.
"""

DEFAULT_ACCELERATOR = "m3vit-int8-zcu104"
"""The accelerator where none is named: every published network fits its board."""
