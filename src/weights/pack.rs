//! Nunchaku's byte layouts, by index formula.
