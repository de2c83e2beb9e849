//! Prompts.

/// A prompt that is encoded for one model.
pub struct svdq_prompt(());
