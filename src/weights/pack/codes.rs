//! 4-bit codes of an SVDQuant linear.
//!
//! Element `(row, col)` of `[n, k]` lies in
//! ```text
//! word   = ((((row/128 · k/64 + col/64) · 8 + row%128/16) · 8 + row%8) · 4 + col%32/8) · 4 + row%16/8 · 2 + col%64/32
//! byte   = 4 · word + col%8 / 2
//! nibble = col % 2                               (0: the low four bits)
//! ```
//! so a word is eight neighbours of one row, and a tile of 128 x 64 is 4096 bytes in a row.

/// Codes `-8..=7`, row-major `[n, k]`. `n` is a multiple of 128, `k` of 64.
pub fn unpack_codes(qweight: &[u8], n: usize, k: usize) -> Vec<i8> {
    let mut codes = vec![0; n * k];
    unpack_codes_to(qweight, n, k, &mut codes);
    codes
}

/// As [`unpack_codes`], into `codes`.
pub(super) fn unpack_codes_to(qweight: &[u8], n: usize, k: usize, codes: &mut [i8]) {
    assert_eq!([qweight.len(), codes.len()], [n * k / 2, n * k]);
    let words = qweight.as_chunks::<4>().0;
    for_each_word(n, k, |word, at| {
        let bytes = spread(u32::from_le_bytes(words[word])).to_le_bytes();
        codes[at..at + 8].copy_from_slice(&bytes.map(|b| b as i8));
    });
}

/// The inverse of [`unpack_codes`]; codes outside `-8..=7` are taken modulo 16.
pub fn pack_codes(codes: &[i8], n: usize, k: usize) -> Vec<u8> {
    assert_eq!(codes.len(), n * k);
    let mut qweight = vec![0u8; n * k / 2];
    let words = qweight.as_chunks_mut::<4>().0;
    for_each_word(n, k, |word, at| {
        let mut value = 0;
        for (i, &code) in codes[at..at + 8].iter().enumerate() {
            value |= ((code as u32) & 15) << (4 * i);
        }
        words[word] = value.to_le_bytes();
    });
    qweight
}

/// Calls `f(word, at)` for every word, in the order of the words; its eight codes are the elements `at ..` of
/// the row-major matrix. Two rows' cache lines are finished before the next two are begun.
fn for_each_word(n: usize, k: usize, mut f: impl FnMut(usize, usize)) {
    assert!(n.is_multiple_of(128) && k.is_multiple_of(64), "[{n}, {k}] is not made of 128 x 64 tiles");
    let mut word = 0;
    for tile_row in (0..n).step_by(128) {
        for col in (0..k).step_by(64) {
            for row in (0..128).step_by(16).flat_map(|pack| (0..8).map(move |lane| tile_row + pack + lane)) {
                for at in (0..32).step_by(8).map(|lane| row * k + col + lane) {
                    for (i, at) in [at, at + 32, at + 8 * k, at + 8 * k + 32].into_iter().enumerate() {
                        f(word + i, at);
                    }
                    word += 4;
                }
            }
        }
    }
}

/// Eight nibbles to eight sign-extended bytes.
fn spread(word: u32) -> u64 {
    let mut x = u64::from(word);
    x = (x | x << 16) & 0x0000_ffff_0000_ffff;
    x = (x | x << 8) & 0x00ff_00ff_00ff_00ff;
    x = (x | x << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    // The sign bit of every nibble, times 0b11110, fills the upper half of its byte.
    x | ((x & 0x0808_0808_0808_0808) * 0x1e)
}
