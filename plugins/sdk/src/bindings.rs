//! The generated bindings, for the export macros and the conversions alone: authors see the types of this crate.
//!
//! Each interface gets a world of its own and all share one set of types, so a guest links what it exports and no
//! more; together the worlds that one export macro names are the world of that policy in `wit/`.

#![allow(
    unsafe_code,
    missing_docs,
    clippy::undocumented_unsafe_blocks,
    clippy::allow_attributes_without_reason,
    reason = "wit-bindgen writes this code; each block follows the canonical ABI"
)]

pub mod lifecycle {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "
            package culvert:sdk;
            world lifecycle-guest {
                import culvert:policy/types@0.1.0;
                import culvert:policy/log@0.1.0;
                export culvert:policy/lifecycle@0.1.0;
            }
        ",
        world: "culvert:sdk/lifecycle-guest",
        generate_all,
        generate_unused_types: true,
        pub_export_macro: true,
        export_macro_name: "export_lifecycle",
    });
}

pub mod router {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package culvert:sdk; world router-guest { export culvert:policy/router@0.1.0; }",
        world: "culvert:sdk/router-guest",
        with: { "culvert:policy/types@0.1.0": crate::bindings::lifecycle::culvert::policy::types },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_router",
    });
}

pub mod ipam {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package culvert:sdk; world ipam-guest { export culvert:policy/ipam@0.1.0; }",
        world: "culvert:sdk/ipam-guest",
        with: { "culvert:policy/types@0.1.0": crate::bindings::lifecycle::culvert::policy::types },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_ipam",
    });
}

pub mod bandwidth {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package culvert:sdk; world bandwidth-guest { export culvert:policy/bandwidth@0.1.0; }",
        world: "culvert:sdk/bandwidth-guest",
        with: { "culvert:policy/types@0.1.0": crate::bindings::lifecycle::culvert::policy::types },
        generate_all,
        pub_export_macro: true,
        export_macro_name: "export_bandwidth",
    });
}
