//! The bytes of version 1, committed: a change that alters any of them is a new format, and a second implementation can compare its own.
//!
//! `cargo test -p persona-fragments --test golden -- --ignored` writes the files anew.
#![allow(clippy::disallowed_methods, reason = "one ignored test writes the files that the others read")]

mod common;

use common::*;
use persona_fragments::{
    AbortedVersion, CertifiedHead, Ed25519Verifier, Equivocation, Manifest, OlderSet, Shape, SignedManifest, encode, seal, wire,
};

/// Name, committed text, and how to make the bytes.
type Golden = (&'static str, &'static str, fn() -> Vec<u8>);

const GOLDEN: [Golden; 9] = [
    ("manifest", include_str!("golden/manifest.hex"), || golden_head().manifest.wire().body.clone()),
    ("certified_head", include_str!("golden/certified_head.hex"), || golden_head().to_bytes()),
    ("abort_certificate", include_str!("golden/abort_certificate.hex"), || aborted(golden_manifest()).to_bytes()),
    ("equivocation", include_str!("golden/equivocation.hex"), || equivocation(golden_manifest()).to_bytes()),
    ("sealed_section", include_str!("golden/sealed_section.hex"), || sealed_in(&context())),
    ("parity_3_of_10", include_str!("golden/parity_3_of_10.hex"), || parity(5, 10)),
    ("parity_2_of_4", include_str!("golden/parity_2_of_4.hex"), || parity(2, 4)),
    ("parity_3_of_7", include_str!("golden/parity_3_of_7.hex"), || parity(3, 7)),
    ("parity_1_of_4", include_str!("golden/parity_1_of_4.hex"), || parity(5, 4)),
];

/// What is coded in the parity vectors: 0, 1, 2 .. 99.
fn counting() -> Vec<u8> {
    (0..100).collect()
}

fn golden_head() -> CertifiedHead {
    head(golden_manifest())
}

fn golden_manifest() -> Manifest {
    let older = OlderSet {
        version: version(6),
        holders: (4..8).map(holder_key).collect(),
        expires_at_ms: NEW_YEAR_MS + 1_000,
        renew_until_ms: NEW_YEAR_MS + 86_400_000,
    };
    Manifest { older: vec![older], renew_until_ms: NEW_YEAR_MS + 86_400_000, ..section(&sealed_in(&context()), 2, 4).0 }
}

/// The parity shards of 0, 1, 2 .. 99, one after the other.
fn parity(level: u8, usable: usize) -> Vec<u8> {
    let shape = Shape::for_level(level, usable).expect("holders");
    encode(&counting(), shape).expect("content").split_off(shape.k().into()).concat()
}

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(32).map(|line| data_encoding::HEXLOWER.encode(line) + "\n").collect()
}

#[test]
fn version_1_has_not_changed() {
    for (name, committed, make) in GOLDEN {
        assert_eq!(hex(&make()), committed, "{name}");
    }
}

#[test]
#[ignore = "writes the files that version_1_has_not_changed compares: cargo test -p persona-fragments --test golden -- --ignored write_golden"]
fn write_golden() {
    for (name, _, make) in GOLDEN {
        let path = format!("{}/tests/golden/{name}.hex", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, hex(&make())).expect("the folder is writable");
    }
}

/// Not only made today as they were committed: what was committed must still be read.
#[test]
fn what_was_committed_is_still_read() {
    let read = |name: &str| {
        let (_, text, _) = GOLDEN.into_iter().find(|(it, _, _)| *it == name).expect("a golden vector");
        data_encoding::HEXLOWER.decode(text.replace('\n', "").as_bytes()).expect("hexadecimal")
    };
    let head = CertifiedHead::from_bytes(&read("certified_head"), &Ed25519Verifier).expect("verifies");
    assert_eq!(head.manifest.wire().body, read("manifest"));
    let aborted = AbortedVersion::from_bytes(&read("abort_certificate"), &Ed25519Verifier).expect("verifies");
    assert_eq!(aborted.manifest, head.manifest);
    let evidence = Equivocation::from_bytes(&read("equivocation"), &Ed25519Verifier).expect("verifies");
    assert!(evidence.manifests().contains(&&head.manifest));
    let manifest: Manifest = wire::decode(&read("manifest")).expect("decodes");
    assert_eq!(SignedManifest::sign(manifest, &owner()).expect("sound").wire(), head.manifest.wire());
    let (_, opened) = seal::open(&read("sealed_section"), &recovery_key(), &context()).expect("opens");
    assert_eq!(opened, fields());
}

/// docs/spec/shards.md in the fewest lines: multiplication bit by bit, and the matrix from interpolation, without tables or inversion.
mod oracle {
    fn times(mut a: u8, mut b: u8) -> u8 {
        let mut product = 0;
        while b != 0 {
            if b & 1 == 1 {
                product ^= a;
            }
            a = a << 1 ^ if a & 0x80 == 0 { 0 } else { 0x1d };
            b >>= 1;
        }
        product
    }

    fn inverse(a: u8) -> u8 {
        (1..=255).find(|b| times(a, *b) == 1).expect("a is not zero")
    }

    /// How much data shard `column` counts in shard `row`: the value at `row` of the polynomial that is 1 at `column` and 0 at the others.
    pub(super) fn coefficient(row: u8, column: u8, k: u8) -> u8 {
        let others = (0..k).filter(|other| *other != column);
        others.fold(1, |value, other| times(value, times(row ^ other, inverse(column ^ other))))
    }

    pub(super) fn shard(row: u8, data: &[Vec<u8>]) -> Vec<u8> {
        let column = |byte: usize| {
            data.iter()
                .enumerate()
                .fold(0, |sum, (column, shard)| sum ^ times(coefficient(row, column as u8, data.len() as u8), shard[byte]))
        };
        (0..data[0].len()).map(column).collect()
    }
}

#[test]
fn parity_is_that_of_the_specification_for_every_shape() {
    for level in 1..=10 {
        for usable in 1..=16 {
            let shape = Shape::for_level(level, usable).expect("holders");
            let shards = encode(&counting(), shape).expect("content");
            for row in 0..shape.n() {
                assert_eq!(shards[usize::from(row)], oracle::shard(row, &shards[..shape.k().into()]), "shard {row} of {shape:?}");
            }
        }
    }
}
