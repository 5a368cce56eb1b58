//! Shards of a content, a second time (docs/spec/shards.md): are the hashes that an owner signed those of a codeword?

/// The field's polynomial, without its highest bit.
const REDUCE: u8 = 0x1d;

/// The BLAKE3 of each of the `n` shards of `content`, any `k` of which give it back.
pub(crate) fn shard_hashes(content: &[u8], n: u8, k: u8) -> Vec<[u8; 32]> {
    shards(content, n, k).iter().map(|shard| *blake3::hash(shard).as_bytes()).collect()
}

/// Those shards.
pub(crate) fn shards(content: &[u8], n: u8, k: u8) -> Vec<Vec<u8>> {
    let shard_len = content.len().div_ceil(usize::from(k));
    let mut data = content.to_vec();
    data.resize(usize::from(k) * shard_len, 0);
    let mut shards: Vec<Vec<u8>> = data.chunks(shard_len.max(1)).map(<[u8]>::to_vec).collect();
    for row in k..n {
        let mut parity = vec![0; shard_len];
        for (column, bytes) in (0..k).zip(&shards) {
            let times = product_table(coefficient(row, column, k));
            for (sum, byte) in parity.iter_mut().zip(bytes) {
                *sum ^= times[usize::from(*byte)];
            }
        }
        shards.push(parity);
    }
    shards
}

/// `M[row][column]`: Lagrange's coefficient.
fn coefficient(row: u8, column: u8, k: u8) -> u8 {
    (0..k).filter(|other| *other != column).fold(1, |so_far, other| product(so_far, product(row ^ other, inverse(column ^ other))))
}

fn product(mut left: u8, mut right: u8) -> u8 {
    let mut sum = 0;
    while right != 0 {
        if right & 1 == 1 {
            sum ^= left;
        }
        left = (left << 1) ^ if left & 0x80 == 0 { 0 } else { REDUCE };
        right >>= 1;
    }
    sum
}

fn inverse(of: u8) -> u8 {
    (0..253).fold(of, |power, _| product(power, of)) // the 254th power: there are 255 elements but zero
}

fn product_table(factor: u8) -> [u8; 256] {
    std::array::from_fn(|byte| product(factor, byte as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors that docs/spec/shards.md#test-vectors names.
    #[test]
    fn the_golden_parity_is_reached() {
        let content: Vec<u8> = (0..100).collect();
        let golden = include_str!("../../../fragments/tests/golden/parity_3_of_10.hex");
        let digits: Vec<u8> = golden.split_whitespace().collect::<String>().into_bytes();
        let hex = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        let parity: Vec<u8> = digits.chunks(2).map(hex).collect();
        let expected: Vec<[u8; 32]> = parity.chunks(34).map(|shard| *blake3::hash(shard).as_bytes()).collect();
        assert_eq!(expected.len(), 7);
        assert_eq!(shard_hashes(&content, 10, 3)[3..], expected);
        assert_eq!(shard_hashes(&content, 10, 3)[1], *blake3::hash(&content[34..68]).as_bytes());
    }

    #[test]
    fn one_of_one_is_the_content() {
        assert_eq!(shard_hashes(b"x", 1, 1), [*blake3::hash(b"x").as_bytes()]);
    }
}
