//! What the command writes: text to standard output, PNG files.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::Failure;

/// Prints to standard output. A reader that has gone away is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(io("standard output", error).into())
        }
        _ => Ok(()),
    }
}

/// A PNG file that appears under its name only when it is complete.
pub(crate) struct PngFile {
    path: PathBuf,
    partial: PathBuf,
    file: Option<File>,
}

impl PngFile {
    /// Makes sure that `path` can be written, before the work whose result goes there.
    pub(crate) fn create(path: &Path) -> Result<Self, svdq::Error> {
        if path.is_dir() {
            return Err(svdq::Error::InvalidArgument(format!(
                "{}: is a folder, not a file to write",
                path.display()
            )));
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(format!(".{}.part", std::process::id()));
        let partial = PathBuf::from(partial);
        let file = File::create_new(&partial).map_err(|error| io(path, error))?;
        Ok(PngFile { path: path.into(), partial, file: Some(file) })
    }

    /// Writes an 8-bit RGB image, with `parameters` as its metadata.
    pub(crate) fn write(
        mut self,
        rgb: &[u8],
        width: u32,
        height: u32,
        parameters: &str,
    ) -> Result<(), svdq::Error> {
        let Some(file) = self.file.take() else { return Ok(()) };
        let encode = || -> Result<(), png::EncodingError> {
            let mut encoder = png::Encoder::new(BufWriter::new(&file), width, height);
            encoder.set_color(png::ColorType::Rgb);
            encoder.set_depth(png::BitDepth::Eight);
            encoder.add_itxt_chunk("parameters".into(), parameters.into())?;
            let mut writer = encoder.write_header()?;
            writer.write_image_data(rgb)?;
            writer.finish()
        };
        encode().map_err(|error| io(&self.path, error.into()))?;
        file.sync_all().map_err(|error| io(&self.path, error))?;
        drop(file);
        std::fs::rename(&self.partial, &self.path).map_err(|error| io(&self.path, error))
    }
}

impl Drop for PngFile {
    /// Leaves nothing half written; after a successful rename there is nothing to remove.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.partial);
    }
}

fn io(path: impl Into<PathBuf>, source: std::io::Error) -> svdq::Error {
    svdq::Error::Io { path: path.into(), source }
}
