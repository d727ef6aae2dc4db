//! Which counters were seen: a frame that comes twice is dropped.
