//! The `svdq` command.

fn main() {}
