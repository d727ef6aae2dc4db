//! How two nodes agree on data keys: messages for the control stream, and a state machine without I/O.
