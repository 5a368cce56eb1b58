//! The presentation order: which wire protocols and cipher suites a node offers, and in which order this message names them
//! (docs/spec/envelope.md#order).
//!
//! The order is a permutation that only the two ends of a pair can predict: a pseudo-random function of the message key picks its rank. To
//! everyone else it looks like chance. The elements are what the sender really offers, never dummy labels.

use subtle::ConstantTimeEq as _;

/// The fewest elements an agent may present: 12! is 28.8 bits of evidence for each message.
pub const ELEMENTS_MIN: usize = 12;

/// The most elements: with 256-bit randomness the bias of an order stays below 32!/2^256, that is 2^-138.
pub const ELEMENTS_MAX: usize = 32;

/// A registered element: its number on the wire, and what it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element {
    /// The number on the wire.
    pub id: u16,
    /// The protocol string, or the suite's name where it is registered. `<mesh>` stands for the mesh's name.
    pub name: &'static str,
}

const fn element(id: u16, name: &'static str) -> Element {
    Element { id, name }
}

/// Every element that has a number, ascending. The registry's page is docs/spec/envelope.md#registry; numbers are never reused.
pub const REGISTRY: [Element; 22] = [
    element(1, "/multistream/1.0.0"),
    element(2, "/noise"),
    element(3, "/yamux/1.0.0"),
    element(4, "/quic-v1"),
    element(5, "/meshsub/1.1.0"),
    element(6, "/meshsub/1.2.0"),
    element(7, "/meshsub/1.3.0"),
    element(8, "/ipfs/id/1.0.0"),
    element(9, "/ipfs/id/push/1.0.0"),
    element(10, "/ipfs/ping/1.0.0"),
    element(11, "/persona/<mesh>/kad/1.0.0"),
    element(12, "/persona/<mesh>/fragment/1"),
    element(256, "Noise_XX_25519_ChaChaPoly_SHA256"),
    element(257, "TLS_CHACHA20_POLY1305_SHA256"),
    element(258, "TLS_AES_128_GCM_SHA256"),
    element(259, "TLS_AES_256_GCM_SHA384"),
    element(260, "X25519MLKEM768"),
    element(512, "Ed25519"),
    element(513, "XChaCha20-Poly1305"),
    element(514, "X25519+ML-KEM-768"),
    element(515, "HKDF-SHA256"),
    element(516, "HMAC-SHA256"),
];

/// What a node of this version always offers, whatever its configuration: the default of [`Identity`](crate::Identity)'s `offered`.
pub const OFFERED_DEFAULT: [u16; 18] = [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 256, 257, 512, 513, 514, 515, 516];

/// Why a set of elements cannot be presented.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Fewer than [`ELEMENTS_MIN`], or more than [`ELEMENTS_MAX`].
    #[error("{0} presentation elements; an agent offers {ELEMENTS_MIN} to {ELEMENTS_MAX}")]
    Count(usize),
    /// A number that the registry does not have.
    #[error("element {0} is not in the registry (docs/spec/envelope.md)")]
    Unregistered(u16),
    /// A number listed twice.
    #[error("element {0} is listed twice")]
    Repeated(u16),
}

/// The name of a registered element.
pub fn element_name(id: u16) -> Option<&'static str> {
    REGISTRY.iter().find(|element| element.id == id).map(|element| element.name)
}

/// The same elements in canonical order: ascending, each registered, none twice, not too few and not too many.
pub fn canonical(offered: &[u16]) -> Result<Vec<u16>, OrderError> {
    if !(ELEMENTS_MIN..=ELEMENTS_MAX).contains(&offered.len()) {
        return Err(OrderError::Count(offered.len()));
    }
    let mut sorted = offered.to_vec();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(OrderError::Repeated(pair[0]));
    }
    match sorted.iter().find(|id| element_name(**id).is_none()) {
        Some(id) => Err(OrderError::Unregistered(*id)),
        None => Ok(sorted),
    }
}

/// The permutation of `elements` whose lexicographic rank is `random mod m!`, with `random` read as a little-endian number.
pub fn unrank(random: &[u8; 32], elements: &[u16]) -> Vec<u16> {
    let mut limbs: [u64; 4] = std::array::from_fn(|i| u64::from_le_bytes(random[8 * i..8 * i + 8].try_into().expect("8 bytes")));
    // The digits of the rank in the factorial number system, the least significant one first: digit i is in 0..=i.
    let digits: Vec<usize> = (1..=elements.len() as u64).map(|base| divide(&mut limbs, base)).collect();
    let mut left = elements.to_vec();
    digits.iter().rev().map(|digit| left.remove(*digit)).collect()
}

/// The lexicographic rank of `order` among the permutations of `elements`; `None` if it is none of them. For at most 34 elements.
pub fn rank(order: &[u16], elements: &[u16]) -> Option<u128> {
    let mut left = elements.to_vec();
    if order.len() != left.len() || left.len() > 34 {
        return None;
    }
    order.iter().try_fold(0_u128, |rank, id| {
        let base = left.len() as u128;
        let digit = left.iter().position(|other| other == id)?;
        left.remove(digit);
        // Horner's rule over the factorial digits: at the first element the weight of what follows is (m - 1)!.
        Some(rank * base + digit as u128)
    })
}

/// Whether two orders are the same, in time that depends on their lengths alone.
pub fn same(one: &[u16], other: &[u16]) -> bool {
    let bytes = |order: &[u16]| order.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    bytes(one).ct_eq(&bytes(other)).into()
}

/// In how many of its pairs `order` disagrees with `expected`: 0 for the same order, m(m-1)/2 for the reverse. Both have the same elements.
pub fn kendall_distance(order: &[u16], expected: &[u16]) -> usize {
    let place = |id: &u16| expected.iter().position(|other| other == id).unwrap_or(expected.len());
    let places: Vec<usize> = order.iter().map(place).collect();
    (0..places.len()).map(|i| places[i + 1..].iter().filter(|later| **later < places[i]).count()).sum()
}

/// Divides in place, and returns the remainder.
fn divide(limbs: &mut [u64; 4], divisor: u64) -> usize {
    let mut remainder: u128 = 0;
    for limb in limbs.iter_mut().rev() {
        let value = (remainder << 64) | u128::from(*limb);
        *limb = (value / u128::from(divisor)) as u64;
        remainder = value % u128::from(divisor);
    }
    remainder as usize
}

#[cfg(test)]
mod tests {
    use chacha20::ChaCha20Rng;
    use proptest::prelude::*;
    use rand_core::SeedableRng as _;

    use super::*;

    fn number(value: u128) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    #[test]
    fn ranks_run_through_all_orders_lexicographically() {
        let elements = [1, 2, 3, 4];
        let orders: Vec<Vec<u16>> = (0..24).map(|rank| unrank(&number(rank), &elements)).collect();
        assert!(orders.windows(2).all(|pair| pair[0] < pair[1]), "{orders:?}");
        assert_eq!(orders[0], [1, 2, 3, 4]);
        assert_eq!(orders[23], [4, 3, 2, 1]);
        assert_eq!(unrank(&number(24), &elements), orders[0], "modulo 4!");
        assert!((0..24).all(|i| rank(&orders[i as usize], &elements) == Some(i)));
    }

    proptest! {
        #[test]
        fn rank_and_unrank_are_inverse(random: [u8; 32], count in 1_usize..=32) {
            let elements: Vec<u16> = (0..count as u16).collect();
            let order = unrank(&random, &elements);
            let place = rank(&order, &elements).expect("a permutation");
            prop_assert_eq!(unrank(&number(place), &elements), order);
        }
    }

    #[test]
    fn the_256_bit_remainder_agrees_with_schoolbook_arithmetic() {
        // 2^256 - 1 mod 20!, by Horner's rule over bits: an independent way to the same number.
        let factorial: u128 = (1..=20_u128).product();
        let wanted = (0..256).fold(0_u128, |rest, _| (rest * 2 + 1) % factorial);
        let elements: Vec<u16> = (0..20).collect();
        assert_eq!(rank(&unrank(&[0xff; 32], &elements), &elements), Some(wanted));
    }

    #[test]
    fn one_hundred_thousand_orders_look_like_chance() {
        const ORDERS: usize = 100_000;
        let elements = canonical(&OFFERED_DEFAULT).expect("registered");
        let m = elements.len();
        let mut rng = ChaCha20Rng::seed_from_u64(11);
        let mut seen = vec![vec![0_u32; m]; m];
        for _ in 0..ORDERS {
            let mut random = [0; 32];
            rng.fill_bytes(&mut random);
            for (place, id) in unrank(&random, &elements).iter().enumerate() {
                seen[elements.binary_search(id).expect("known")][place] += 1;
            }
        }
        let expected = ORDERS as f64 / m as f64;
        let chi2: f64 = seen.iter().flatten().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
        let freedom = ((m - 1) * (m - 1)) as f64;
        // The (m-1)^2 free cells give mean `freedom` and variance 2 * freedom; six standard deviations either way.
        assert!((chi2 - freedom).abs() < 6.0 * (2.0 * freedom).sqrt(), "chi^2 {chi2} of {freedom}");
    }

    #[test]
    fn distances_count_disagreeing_pairs() {
        assert_eq!(kendall_distance(&[1, 2, 3, 4], &[1, 2, 3, 4]), 0);
        assert_eq!(kendall_distance(&[2, 1, 3, 4], &[1, 2, 3, 4]), 1);
        assert_eq!(kendall_distance(&[4, 3, 2, 1], &[1, 2, 3, 4]), 6);
        assert!(same(&[1, 2], &[1, 2]) && !same(&[1, 2], &[2, 1]) && !same(&[1, 2], &[1]));
    }

    #[test]
    fn only_registered_elements_are_presented_and_none_twice() {
        assert!(REGISTRY.windows(2).all(|pair| pair[0].id < pair[1].id));
        let mut offered = OFFERED_DEFAULT.to_vec();
        offered.reverse();
        assert_eq!(canonical(&offered), Ok(OFFERED_DEFAULT.to_vec()));
        assert_eq!(canonical(&offered[..11]), Err(OrderError::Count(11)));
        offered[0] = offered[1];
        assert_eq!(canonical(&offered), Err(OrderError::Repeated(515)));
        offered[0] = 9999;
        assert_eq!(canonical(&offered), Err(OrderError::Unregistered(9999)));
    }
}
