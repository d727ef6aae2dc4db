//! Builds the shipped policies into `OUT_DIR`.

fn main() {
    culvert_componentize::embed_guests(&["bandwidth-annotations", "ipam-hash", "ipam-pool", "route-sites"]);
}
