//! CRC-32 (the reflected polynomial 0xEDB88320, as in IEEE 802.3 and zlib).
//!
//! A ticket is typed and pasted, an address book is torn by a power cut: accidents, not attacks. A CRC finds *every* error that stays
//! within 32 bits, which a hash cut to four bytes only very probably does, and one wrong character of a ticket changes five bits.

const POLYNOMIAL: u32 = 0xEDB8_8320;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut rest = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            rest = if rest & 1 == 1 { (rest >> 1) ^ POLYNOMIAL } else { rest >> 1 };
            bit += 1;
        }
        table[byte] = rest;
        byte += 1;
    }
    table
};

/// The checksum's length, in bytes: it is written big endian.
pub(crate) const CRC_BYTES: usize = 4;

/// The CRC-32 of `bytes`.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |rest, &byte| TABLE[usize::from((rest as u8) ^ byte)] ^ (rest >> 8))
}

/// `bytes` and their checksum.
pub(crate) fn append_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = crc32(&bytes);
    bytes.extend(checksum.to_be_bytes());
    bytes
}

/// The bytes before the checksum, where it is theirs.
pub(crate) fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (body, checksum) = bytes.split_last_chunk::<CRC_BYTES>()?;
    (crc32(body) == u32::from_be_bytes(*checksum)).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_agrees() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926); // the check value that every CRC catalogue gives for CRC-32
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let bytes = append_crc((0..100).collect());
        assert_eq!(checked(&bytes), Some(&bytes[..100]));
        for bit in 0..bytes.len() * 8 {
            let mut bent = bytes.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(checked(&bent), None, "bit {bit}");
        }
        assert_eq!(checked(&bytes[..3]), None);
    }
}
