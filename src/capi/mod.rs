//! The C API. Checks and conversions only: no logic lives here.
