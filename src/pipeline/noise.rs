//! The noise that torch.randn draws on the CPU, from the same seed.
