//! 16-bit transformers to 4-bit SVDQuant checkpoints.
