"""Code generated from `proto/` by `make proto`; `whip_core.control_wire` alone imports it."""
