//! The invariants of `host/ARCHITECTURE.md` under long seeded histories: a policy that answers at
//! random, and clusters that fall apart and heal. A failure names its seed, and the seed replays it.

#![expect(clippy::unwrap_used, reason = "a test's own functions fail it just as the test does")]

mod partition;
mod random;
mod random_policy;
