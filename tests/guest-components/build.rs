//! Builds the test guests into `OUT_DIR`.

fn main() {
    culvert_componentize::embed_guests(&[
        "bandwidth-fixed",
        "ipam-outside-pool",
        "route-foreign-prefix",
        "route-hoard",
        "route-spin",
        "route-trap-later",
        "route-tunnel-all",
    ]);
}
