//! FlowMatchEuler, as diffusers has it.
