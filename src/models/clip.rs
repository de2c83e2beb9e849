//! CLIP's text encoder: the pooled embedding of a prompt.
