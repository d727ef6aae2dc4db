//! What a probe of a path and its answer say.
