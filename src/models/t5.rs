//! T5 v1.1's encoder: an embedding a token.
