//! From the modules of a file to the sites of a network: fused modules are cut apart, split ones joined.

use std::ops::Range;

use super::file::{Update, wrong};
use super::names::Network;
use super::values::{Loaded, values};
use super::{Sites, Target};
use crate::ops::LowRankSource;
use crate::weights::{Checkpoint, Numbers};
use crate::{Error, Result};

/// The part of an update that changes some outputs of one site.
pub(super) struct Piece<'a> {
    pub(super) network: Network,
    pub(super) site: usize,
    shape: [usize; 2],
    /// Outputs of the site.
    rows: Range<usize>,
    down: Loaded<'a>,
    /// Of `down`: the inputs of the site.
    columns: Range<usize>,
    up: Loaded<'a>,
    bias: Option<Loaded<'a>>,
    /// Of `up` and `bias`; as many as `rows`.
    up_rows: Range<usize>,
    pub(super) scale: f32,
}

/// Inputs that an update gives the embedder of latents beside those that it has: LoRAs for FLUX.1's tools (Canny, Depth)
/// put the latents of a control image there, as many again or several times as many. Without one they are zeros, so that
/// the pieces of an update leave these columns of `A` out.
pub(super) fn control_channels(sites: &Sites, update: &Update<'_>) -> usize {
    let k = match sites.targets(&update.target.layers[0]) {
        [only] if update.target.layers[0] == "x_embedder" => only.columns.end,
        _ => return 0,
    };
    let columns = update.down.shape[1];
    if columns > k && columns.is_multiple_of(k) { columns - k } else { 0 }
}

/// The pieces of an update.
///
/// # Errors
/// [`Error::WrongModel`] if its shape is not that of the layers that it names.
pub(super) fn cut<'a>(file: &Checkpoint, sites: &Sites, update: &Update<'a>) -> Result<Vec<Piece<'a>>> {
    let Update { network, target, down, up, bias, scale } = *update;
    let layers: Vec<&[Target]> = target.layers.iter().map(|name| sites.targets(name)).collect();
    let height = |targets: &[Target]| targets.first().map_or(0, |t| t.rows.len());
    let n: usize = layers.iter().map(|targets| height(targets)).sum();
    let k = layers.first().and_then(|targets| targets.last()).map_or(0, |last| last.columns.end);
    if down.shape[1] != k + control_channels(sites, update) {
        return Err(wrong(file, down.name, format!("has {} columns, {k} are expected", down.shape[1])));
    }
    if up.shape[0] != n {
        return Err(wrong(file, up.name, format!("has {} rows, {n} are expected", up.shape[0])));
    }

    let mut pieces = Vec::new();
    let mut start = 0;
    for targets in layers {
        for (i, target) in targets.iter().enumerate() {
            let mut add = |rows: Range<usize>, from: usize| {
                pieces.push(Piece {
                    network,
                    site: target.site,
                    shape: target.shape,
                    down,
                    columns: target.columns.clone(),
                    up,
                    // The sites of one layer are summed: its bias goes to the last.
                    bias: bias.filter(|_| i + 1 == targets.len()),
                    up_rows: from..from + rows.len(),
                    rows,
                    scale,
                });
            };
            let Range { start: first, end } = target.rows;
            if update.target.swapped {
                let half = (end - first) / 2;
                add(first..first + half, start + half);
                add(first + half..end, start);
            } else {
                add(first..end, start);
            }
        }
        start += height(targets);
    }
    Ok(pieces)
}

/// Puts pieces together that can be one update: neighbours of one site with the same `A`, as q, k and v often have it.
///
/// # Errors
/// [`Error::BadFormat`] if two change the same outputs.
pub(super) fn join<'a>(file: &Checkpoint, mut pieces: Vec<Piece<'a>>) -> Result<Vec<Vec<Piece<'a>>>> {
    pieces.sort_by_key(|piece| (piece.network, piece.site, piece.rows.start));
    let mut groups: Vec<Vec<Piece<'_>>> = Vec::new();
    for piece in pieces {
        if let Some(group) = groups.last_mut()
            && let Some(last) = group.last()
            && (last.network, last.site) == (piece.network, piece.site)
        {
            if last.rows.end > piece.rows.start {
                let what = format!("changes the same layer as `{}`", last.down.name);
                return Err(file.bad(piece.down.name, what));
            }
            if last.continues_in(&piece) {
                group.push(piece);
                continue;
            }
        }
        groups.push(vec![piece]);
    }
    Ok(groups)
}

impl Piece<'_> {
    fn continues_in(&self, next: &Piece<'_>) -> bool {
        self.rows.end == next.rows.start
            && self.scale == next.scale
            && self.bias.is_some() == next.bias.is_some()
            && self.down.dtype == next.down.dtype
            && self.down.shape == next.down.shape
            && self.down.bytes == next.down.bytes
    }
}

/// The values of pieces that were joined.
///
/// # Errors
/// Those of [`values`].
pub(super) fn source<'a>(file: &Checkpoint, group: &[Piece<'a>]) -> Result<LowRankSource<'a>> {
    let (Some(first), Some(last)) = (group.first(), group.last()) else {
        return Err(Error::Internal("an update of nothing".into()));
    };
    let [n, k] = first.shape;
    let [rank, width] = [first.down.shape[0], first.down.shape[1]];
    let down = match first.columns == (0..width) {
        true => values(file, &first.down, 0..rank * width)?,
        false => {
            let row = |row: usize| first.columns.start + row * width..first.columns.end + row * width;
            let mut rows = Numbers::default();
            (0..rank).try_for_each(|r| rows.append(values(file, &first.down, row(r))?))?;
            rows
        }
    };
    let (mut up, mut bias) = (Numbers::default(), Vec::new());
    for Piece { up: tensor, bias: b, up_rows, .. } in group {
        up.append(values(file, tensor, up_rows.start * rank..up_rows.end * rank)?)?;
        if let Some(b) = b {
            bias.extend_from_slice(values(file, b, up_rows.clone())?.values()?);
        }
    }
    Ok(LowRankSource { n, k, rows: first.rows.start..last.rows.end, rank, down, up, bias })
}
