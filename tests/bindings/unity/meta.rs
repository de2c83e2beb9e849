//! The .meta files that Unity wants beside every file and folder. They follow from the path alone, so
//! that a GUID never changes and never collides.

use std::fs;
use std::path::{Path, PathBuf};

/// The files and folders of a package that Unity imports, by their paths in it, and all that are in folders that it
/// does not import but copies, such as Samples~.
pub(super) fn assets(package: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![package.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                folders.push(path.clone());
            }
            if !name.ends_with('~') && !name.ends_with(".meta") {
                found.push(path.strip_prefix(package).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// What the .meta of an asset says.
pub(super) fn meta(package: &Path, asset: &Path) -> String {
    let guid = guid(asset);
    let importer = match asset.extension().and_then(|extension| extension.to_str()) {
        _ if package.join(asset).is_dir() => {
            "folderAsset: yes\nDefaultImporter:\n  externalObjects: {}\n".into()
        }
        Some("asmdef") => "AssemblyDefinitionImporter:\n  externalObjects: {}\n".into(),
        Some("cs") => {
            "MonoImporter:\n  externalObjects: {}\n  serializedVersion: 2\n  defaultReferences: []\n  \
                       executionOrder: 0\n  icon: {instanceID: 0}\n"
                .into()
        }
        Some("dll") => plugin("Windows", "Win64"),
        Some("json") => "PackageManifestImporter:\n  externalObjects: {}\n".into(),
        Some("md") => "TextScriptImporter:\n  externalObjects: {}\n".into(),
        Some("so") => plugin("Linux", "Linux64"),
        _ => panic!("which importer is for {}?", asset.display()),
    };
    let tail = "  userData: \n  assetBundleName: \n  assetBundleVariant: \n";
    format!("fileFormatVersion: 2\nguid: {guid}\n{importer}{tail}")
}

/// FNV-1a of the path, 128 bits.
fn guid(asset: &Path) -> String {
    let path = format!("com.libsvdq.svdq/{}", asset.to_str().unwrap());
    let hash = path.bytes().fold(0x6c62272e07bb014262b821756295c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000000001000000000000000000013b)
    });
    format!("{hash:032x}")
}

/// A native library of one platform, for its players and for the editor there.
fn plugin(system: &str, player: &str) -> String {
    let excluded: String = ["Linux64", "OSXUniversal", "Win", "Win64"]
        .map(|other| format!("        Exclude {other}: {}\n", u8::from(other != player)))
        .concat();
    format!(
        "PluginImporter:
  externalObjects: {{}}
  serializedVersion: 2
  iconMap: {{}}
  executionOrder: {{}}
  defineConstraints: []
  isPreloaded: 0
  isOverridable: 0
  isExplicitlyReferenced: 0
  validateReferences: 1
  platformData:
  - first:
      : Any
    second:
      enabled: 0
      settings:
        Exclude Editor: 0
{excluded}  - first:
      Any: 
    second:
      enabled: 0
      settings: {{}}
  - first:
      Editor: Editor
    second:
      enabled: 1
      settings:
        CPU: x86_64
        DefaultValueInitialized: true
        OS: {system}
  - first:
      Standalone: {player}
    second:
      enabled: 1
      settings:
        CPU: x86_64
"
    )
}
