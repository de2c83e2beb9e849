//! The CPU device: the specification of every operation, and a SIMD path beside it.
