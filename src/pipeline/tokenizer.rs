//! Prompts to token ids, by the tokenizer.json files of CLIP and T5.
