//! Cuts a super-packet of the TUN into packets that fit a path.
