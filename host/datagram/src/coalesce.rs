//! Joins received packets of a flow into super-packets for the TUN.
