//! A container image without a registry: one layer with a static busybox, as an archive that runtimes import.
//!
//! **Source** OCI image format specification 1.0.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::command;

/// What the image is called.
pub const IMAGE: &str = "docker.io/lab/server:1";
/// The port on which its containers answer TCP connections.
pub const PORT: u16 = 8080;

/// What its containers run unless told otherwise: answers every connection, for ever.
const ENTRY_POINT: [&str; 9] = ["/bin/busybox", "nc", "-l", "-l", "-p", "8080", "-e", "/bin/busybox", "true"];

/// Where a busybox may be that needs nothing but itself; the first that is there counts.
const BUSYBOXES: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];

/// A busybox that is linked statically.
///
/// **Errors** there is none; the text says how to get one.
pub fn busybox() -> Result<PathBuf> {
    let Some(path) = BUSYBOXES.iter().map(Path::new).find(|path| path.is_file()) else {
        bail!("no busybox here: `apt-get install busybox-static` brings it");
    };
    if command::run(&format!("ldd {}", path.display())).is_ok() {
        bail!("{} needs libraries: `apt-get install busybox-static` brings one that does not", path.display());
    }
    Ok(path.to_owned())
}

/// Writes the image's archive.
///
/// **Errors** a file cannot be read or written.
pub fn write(busybox: &Path, archive: &Path) -> Result<()> {
    let program = std::fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    let mut layer = Archive::new();
    layer.add("bin/busybox", &program, 0o755)?;
    let layer = layer.finish()?;
    let configuration = serde_json::to_vec(&json!({
        "architecture": architecture(), "os": "linux",
        "config": {"Entrypoint": ENTRY_POINT},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("application/vnd.oci.image.config.v1+json", &configuration),
        "layers": [described("application/vnd.oci.image.layer.v1.tar", &layer)],
    }))?;
    let mut entry = described("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({"io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": IMAGE});
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [entry]}))?;
    let mut image = Archive::new();
    image.add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    image.add("index.json", &index, 0o644)?;
    for blob in [&configuration, &manifest, &layer] {
        image.add(&format!("blobs/sha256/{}", digest(blob).trim_start_matches("sha256:")), blob, 0o644)?;
    }
    std::fs::write(archive, image.finish()?).with_context(|| format!("cannot write {}", archive.display()))
}

/// This machine's architecture in the words of images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn digest(bytes: &[u8]) -> String {
    let digits: Vec<String> = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{}", digits.concat())
}

fn described(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// A tar archive in memory.
struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn add(&mut self, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        Ok(self.0.append_data(&mut header, name, bytes)?)
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_names_its_function() {
        assert_eq!(digest(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn the_entry_point_listens_on_the_image_s_port() {
        assert!(ENTRY_POINT.contains(&PORT.to_string().as_str()));
    }
}
