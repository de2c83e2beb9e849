//! Sound files with faults.

use std::fmt::Write;

use svdq::weights::Dtype;

const DTYPES: [Dtype; 8] =
    [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::I8, Dtype::U8, Dtype::I32, Dtype::F8_E4M3, Dtype::F4];
/// Larger files are not made.
const MAX_DATA: usize = 1 << 22;

pub type Tensors = Vec<(String, Dtype, Vec<usize>)>;

/// A fault: which tensor (two bytes), what to change, and the new value.
pub fn apply(tensors: &mut Tensors, &[low, high, what, value]: &[u8; 4]) {
    if tensors.is_empty() {
        return;
    }
    let at = usize::from(u16::from_le_bytes([low, high])) % tensors.len();
    let (_, dtype, shape) = &mut tensors[at];
    let dim = usize::from(what >> 3) % shape.len().max(1);
    match (what & 7, shape.get_mut(dim)) {
        (0, _) => drop(tensors.remove(at)),
        (1, _) => *dtype = DTYPES[usize::from(value) % DTYPES.len()],
        (2, Some(size)) => *size = value.into(),
        (3, Some(size)) => *size = 1usize.checked_shl(value.into()).unwrap_or(usize::MAX),
        (4, Some(size)) => *size = size.saturating_mul(value.into()),
        (5, Some(size)) => *size = size.wrapping_add_signed((value as i8).into()),
        (6, _) => shape.push(value.into()),
        _ => drop(shape.pop()),
    }
}

/// A file with these tensors, all zeros, unless it is large. Of two with one name, the first.
pub fn file(tensors: &Tensors, metadata: serde_json::Value) -> Option<Vec<u8>> {
    let mut header = format!("{{\"__metadata__\":{metadata}");
    let mut at = 0usize;
    for (i, (name, dtype, shape)) in tensors.iter().enumerate() {
        if tensors[..i].iter().any(|(other, ..)| other == name) {
            continue;
        }
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        let end =
            at.checked_add(elements.checked_mul(dtype.bitsize())? / 8).filter(|&end| end <= MAX_DATA)?;
        write!(
            header,
            ",\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{at},{end}]}}"
        )
        .ok()?;
        at = end;
    }
    header.push('}');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + at, 0);
    Some(file)
}
