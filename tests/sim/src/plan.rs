//! What a seed draws: how large the mesh is, what may go wrong in it, and how fast time's limits pass.
//!
//! Every seed enables a random subset of the faults (swarm testing: a run with all of them hides what a run with two would find).
//! Dropping a fault from a plan leaves the other draws as they are, so that a failing seed can be made smaller.

use std::{collections::BTreeSet, fmt, str::FromStr};

use chacha20::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// Something that may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Messages take up to 60 ms, in any order.
    Delay,
    /// Eight of a hundred messages are lost.
    Loss,
    /// Eight of a hundred messages come twice, the second time much later.
    Double,
    /// The mesh falls into two halves for a while.
    Cut,
    /// One machine is heard by some and not by others, or hears nothing and is heard.
    OneWay,
    /// One kind of request does not get through between some machines.
    Block,
    /// Processes are killed and start again on their disks.
    Crash,
    /// All processes are killed at once.
    Blackout,
    /// A machine sleeps and wakes up later, its clock having gone on.
    Suspend,
    /// Wall clocks are off, within the allowance, and drift.
    Skew,
    /// Syncs take up to a second.
    SlowDisk,
    /// A sync that was said to be done was not: a crash loses it. The machine counts as faulty.
    LyingSync,
    /// A machine comes back with an empty disk. It counts as faulty.
    DiskLost,
    /// Shards rot on the disk. Their machine counts as faulty for them.
    Rot,
    /// Holders lie.
    Liars,
    /// Agents are taken over by other hosts, and by two at once.
    Takeover,
    /// Lookups return the dead and miss the living.
    BadLookups,
    /// Gossip reaches nobody.
    Deaf,
    /// Machines join while others write.
    Join,
    /// An owner cheats: shards of no content, two manifests of one version, manifests for other people's keys.
    Cheat,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 20] = [
        Self::Delay,
        Self::Loss,
        Self::Double,
        Self::Cut,
        Self::OneWay,
        Self::Block,
        Self::Crash,
        Self::Blackout,
        Self::Suspend,
        Self::Skew,
        Self::SlowDisk,
        Self::LyingSync,
        Self::DiskLost,
        Self::Rot,
        Self::Liars,
        Self::Takeover,
        Self::BadLookups,
        Self::Deaf,
        Self::Join,
        Self::Cheat,
    ];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Loss => "loss",
            Self::Double => "double",
            Self::Cut => "cut",
            Self::OneWay => "one-way",
            Self::Block => "block",
            Self::Crash => "crash",
            Self::Blackout => "blackout",
            Self::Suspend => "suspend",
            Self::Skew => "skew",
            Self::SlowDisk => "slow-disk",
            Self::LyingSync => "lying-sync",
            Self::DiskLost => "disk-lost",
            Self::Rot => "rot",
            Self::Liars => "liars",
            Self::Takeover => "takeover",
            Self::BadLookups => "bad-lookups",
            Self::Deaf => "deaf",
            Self::Join => "join",
            Self::Cheat => "cheat",
        }
    }

    /// Whether it makes a machine count as one of the `f`.
    const fn costs_a_holder(self) -> bool {
        matches!(self, Self::LyingSync | Self::DiskLost | Self::Rot | Self::Liars | Self::Cheat)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|fault| fault.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.into_iter().map(Self::name).collect();
            format!("no fault is called {name:?}; there are {}", names.join(", "))
        })
    }
}

/// How a holder lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lie {
    /// It answers nothing.
    Silent,
    /// It knows nothing of any section.
    Deny,
    /// It answers with the oldest head that it ever knew.
    Stale,
    /// Its shards have a bit turned, are too short, or another section's.
    Corrupt,
    /// It signs for shards and stores nothing.
    AckWithoutStoring,
    /// It confirms certificates and forgets them.
    MuteCommit,
    /// It will not say what it knows to some of those who ask.
    Withhold,
    /// Its certificates are short, or count one holder twice.
    ForgedCertificate,
    /// It shows one version to some and another to others.
    TwoFaced,
    /// It asks for shards again and again, or is busy, or full, for ever.
    Obstruct,
    /// It is always recovering.
    Recovering,
    /// It says that others have taken over.
    FalseFence,
    /// It answers with noise.
    Noise,
    /// Each answer is another lie.
    Everything,
}

impl Lie {
    /// Every lie.
    pub const ALL: [Self; 14] = [
        Self::Silent,
        Self::Deny,
        Self::Stale,
        Self::Corrupt,
        Self::AckWithoutStoring,
        Self::MuteCommit,
        Self::Withhold,
        Self::ForgedCertificate,
        Self::TwoFaced,
        Self::Obstruct,
        Self::Recovering,
        Self::FalseFence,
        Self::Noise,
        Self::Everything,
    ];
}

/// All that a seed decides beforehand.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Machines at the beginning.
    pub hosts: usize,
    /// Machines that join later.
    pub joining: usize,
    /// Agents; the first machines host one each.
    pub agents: usize,
    /// The level of every class.
    pub level: u8,
    /// Lifetimes are divided by this: 1 to 60.
    pub ttl_divisor: u32,
    /// Virtual time of the first phase, in milliseconds.
    pub storm_ms: u64,
    /// Virtual time of the second phase, in milliseconds.
    pub calm_ms: u64,
    /// Pause between two things that users do, on average, in milliseconds.
    pub load_gap_ms: u64,
    /// Pause between two faults, on average, in milliseconds.
    pub fault_gap_ms: u64,
    /// How often each node proves that it is ready, in seconds.
    pub canary_s: u64,
    /// What may go wrong.
    pub faults: BTreeSet<Fault>,
    /// How many machines may lie, lose or spoil what they hold: no more than `f` of the smallest holder set.
    pub faulty: usize,
    /// The lies that are told.
    pub lies: Vec<Lie>,
    /// Nodes sign with Ed25519.
    pub real_signatures: bool,
    /// All that happens is hashed, so that a second run can be compared with the first.
    pub traced: bool,
}

/// One seed in so many is run twice, and must be the same run.
pub const TRACED: u64 = 100;

/// Random bytes for one purpose of one seed, whatever the others draw.
pub fn stream(seed: u64, purpose: &str) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(blake3::derive_key(purpose, &seed.to_le_bytes()))
}

/// A number below `bound`.
pub fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    if bound == 0 { 0 } else { rng.next_u64() % bound }
}

impl Plan {
    /// What this seed draws.
    pub fn of(seed: u64) -> Self {
        let mut rng = stream(seed, "plan");
        let rng = &mut rng;
        // Mostly as small as the shape allows, where every holder is in every set; sometimes with others to choose from.
        let level = [1, 2, 2, 2, 3, 3, 4, 5][below(rng, 8) as usize];
        let wanted = 3 * usize::from(level).div_ceil(2) + 1;
        let hosts = 1 + if below(rng, 8) == 0 { 1 + below(rng, wanted as u64) as usize } else { wanted + below(rng, 4) as usize };
        let agents = (1 + below(rng, 2) as usize).min(hosts);
        let ttl_divisor = [60, 30, 20, 10, 10, 5, 2, 1][below(rng, 8) as usize];
        let unscaled = below(rng, 20) == 0;
        let mut faults: BTreeSet<Fault> = Fault::ALL.into_iter().filter(|_| below(rng, 10) < 3).collect();
        let f = (wanted.min(hosts - 1).max(1) - 1) / 3;
        if f == 0 {
            faults.retain(|fault| !fault.costs_a_holder());
        }
        let faulty = if f == 0 { 0 } else { 1 + below(rng, f as u64) as usize };
        let lies = (0..faulty).map(|_| Lie::ALL[below(rng, Lie::ALL.len() as u64) as usize]).collect();
        let storm_ms = if unscaled { 3 * 3600 * 1000 } else { 12_000 + below(rng, 32_000) };
        Self {
            seed,
            hosts,
            joining: 1 + (seed % 4) as usize,
            agents,
            level,
            ttl_divisor: if unscaled { 1 } else { ttl_divisor },
            storm_ms,
            calm_ms: 35_000,
            load_gap_ms: if unscaled { 60_000 } else { 150 + below(rng, 1_000) },
            fault_gap_ms: if unscaled { 120_000 } else { 300 + below(rng, 3_000) },
            canary_s: if unscaled { 1_800 } else { [60, 3_600, 3_600, 3_600][below(rng, 4) as usize] },
            faults,
            faulty,
            lies,
            real_signatures: below(rng, 100) == 0,
            traced: seed.is_multiple_of(TRACED),
        }
    }

    /// Whether something may go wrong.
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// The command that runs it again.
    pub fn replay(&self) -> String {
        let drawn = Self::of(self.seed);
        let mut command = format!("cargo run --release -p persona-sim -- replay {}", self.seed);
        let dropped: Vec<&str> = drawn.faults.difference(&self.faults).map(|fault| fault.name()).collect();
        if !dropped.is_empty() {
            command += &format!(" --without {}", dropped.join(","));
        }
        if drawn.storm_ms != self.storm_ms {
            command += &format!(" --storm-ms {}", self.storm_ms);
        }
        command
    }
}
