//! Contexts and models: what a program holds.
