//! What a seed draws: how large the mesh is, what may go wrong in it, and how fast time's limits pass.
//!
//! Every seed enables a random subset of the faults (swarm testing: a run with all of them hides what a run with two would find).
//! Dropping a fault from a plan leaves the other draws as they are, so that a failing seed can be made smaller.

use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc};

use chacha20::ChaCha8Rng;
use persona_lies::Lie;
pub use persona_lies::below;
use rand_core::SeedableRng;

use crate::churn::Trace;

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
    /// A disk has no room, or a sync fails: the process stops, and starts again into the same.
    BadDisk,
    /// A disk goes back to what it was, and its process cannot know. The machine counts as faulty.
    Rollback,
    /// A wall clock is off by more than the allowance. The machine counts as faulty.
    Jump,
    /// Clocks run fast or slow, by up to 500 millionths.
    Drift,
    /// A machine is cut off and back again, many times a second.
    Flap,
    /// Machines come and go as they do in measured meshes.
    Churn,
    /// A machine runs twice, with one key and a copy of its disk. The two count as one faulty holder.
    Twins,
    /// A machine sends what others sent, mangled. It counts as faulty.
    Mangle,
    /// One more than `f` lie together. Then contents, poison, floors and the end of lives are still promised, and nothing else.
    TooMany,
    /// Program: a certificate reaches one holder alone, and one reader hears it and the next does not, or the same after a restart.
    HalfTold,
    /// Program: `f` holders miss a version, and `f + 1` of those that have it lose their disks at once.
    LostStores,
    /// Program: a version is acked by fewer than a certificate needs, its owner may die, and liars certify it to whoever asks.
    HalfAcked,
    /// Program: an owner is away until its versions have expired, and readers go on asking.
    Away,
    /// Program: while an owner is away its holders give a place to another; back again, it puts where it always did, and a reader is led to the
    /// new holders.
    HandedOver,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 34] = [
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
        Self::BadDisk,
        Self::Rollback,
        Self::Jump,
        Self::Drift,
        Self::Flap,
        Self::Churn,
        Self::Twins,
        Self::Mangle,
        Self::TooMany,
        Self::HalfTold,
        Self::LostStores,
        Self::HalfAcked,
        Self::Away,
        Self::HandedOver,
    ];

    /// Those that are programs: sequences that aim at one rule, where chance alone would seldom meet. A seed has one at most, and then
    /// few other faults.
    pub const PROGRAMS: [Self; 5] = [Self::HalfTold, Self::LostStores, Self::HalfAcked, Self::Away, Self::HandedOver];

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
            Self::BadDisk => "bad-disk",
            Self::Rollback => "rollback",
            Self::Jump => "jump",
            Self::Drift => "drift",
            Self::Flap => "flap",
            Self::Churn => "churn",
            Self::Twins => "twins",
            Self::Mangle => "mangle",
            Self::TooMany => "too-many",
            Self::HalfTold => "half-told",
            Self::LostStores => "lost-stores",
            Self::HalfAcked => "half-acked",
            Self::Away => "away",
            Self::HandedOver => "handed-over",
        }
    }

    /// Whether it is there for a whole storm, and not now and then.
    pub const fn lasts(self) -> bool {
        let network = matches!(self, Self::Delay | Self::Loss | Self::Double | Self::BadLookups | Self::Deaf | Self::Churn);
        network || matches!(self, Self::SlowDisk | Self::Drift | Self::Liars | Self::Cheat | Self::Twins | Self::Mangle | Self::Takeover)
    }

    /// Whether it makes a machine count as one of the `f`.
    pub const fn costs_a_holder(self) -> bool {
        matches!(self, Self::DiskLost | Self::Rot | Self::Jump) || self.breaks_rules()
    }

    /// Whether nothing may be asked of a machine that it befalls: it does not do what the protocol says, or was lied to by its own disk. (Of one
    /// that lost its disk, or whose clock is off, all is asked that it can know.)
    pub const fn breaks_rules(self) -> bool {
        matches!(self, Self::LyingSync | Self::Liars | Self::Cheat | Self::Rollback | Self::Twins | Self::Mangle | Self::TooMany)
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
    /// How many machines may lie, lose or spoil what they hold: no more than `f` of the smallest holder set, but for `TooMany`.
    pub faulty: usize,
    /// That `f`.
    pub tolerated: usize,
    /// The lies that are told.
    pub lies: Vec<Lie>,
    /// Nodes sign with Ed25519.
    pub real_signatures: bool,
    /// For how long holders renew among themselves what they renew at all, in seconds, in place of the default.
    pub renew_for_s: Option<u64>,
    /// Who comes and goes when, from a file: else a distribution is drawn.
    pub trace: Option<Arc<Trace>>,
    /// All that happens is hashed, so that a second run can be compared with the first.
    pub traced: bool,
}

/// One seed in so many is run twice, and must be the same run.
pub const TRACED: u64 = 100;

/// Random bytes for one purpose of one seed, whatever the others draw.
pub fn stream(seed: u64, purpose: &str) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(blake3::derive_key(purpose, &seed.to_le_bytes()))
}

impl Plan {
    /// Whether an owner goes away in the end, for longer than its sections live. Its core-like document then lives for a minute or two.
    pub fn is_left(&self) -> bool {
        self.seed.is_multiple_of(3) && self.ttl_divisor >= 30
    }

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
        let program = Fault::PROGRAMS[below(rng, Fault::PROGRAMS.len() as u64) as usize];
        let program = Some(program).filter(|_| below(rng, 4) == 0);
        let often = if program.is_some() { 1 } else { 3 };
        let mut faults: BTreeSet<Fault> = Fault::ALL.into_iter().filter(|_| below(rng, 10) < often).collect();
        faults.retain(|fault| !Fault::PROGRAMS.contains(fault));
        faults.extend(program);
        // A program needs somebody to keep from hearing, and versions that expire while it waits.
        let (unscaled, ttl_divisor) = if program.is_some() { (false, 60) } else { (unscaled, ttl_divisor) };
        // Four holders, one of whom lies; the owner, who takes a place, and who reads.
        let hands_over = program == Some(Fault::HandedOver);
        let (level, wanted, hosts) = if hands_over { (2, 4, hosts.max(8)) } else { (level, wanted, hosts) };
        if below(rng, 4) > 0 {
            faults.remove(&Fault::TooMany); // most of what is judged is judged within `f`
        }
        // Three hours of a large mesh are as long as a hundred other seeds. Most are of a small one: what is long in them is time.
        let small = unscaled && below(rng, 4) > 0;
        let (level, wanted, hosts) = if small { (level.min(2), wanted.min(4), hosts.min(6)) } else { (level, wanted, hosts) };
        let f = (wanted.min(hosts - 1).max(1) - 1) / 3;
        if f == 0 {
            faults.retain(|fault| !fault.costs_a_holder());
        }
        let faulty = if f == 0 { 0 } else { 1 + below(rng, f as u64) as usize };
        let mut lies: Vec<Lie> = (0..faulty).map(|_| Lie::ALL[below(rng, Lie::ALL.len() as u64) as usize]).collect();
        let (mut faulty, mut faults) = (faulty, faults);
        if faults.contains(&Fault::TooMany) {
            (faulty, lies) = (f + 1, vec![Lie::Collude; f + 1]);
        } else if lies.contains(&Lie::Collude) && faults.contains(&Fault::Liars) {
            (faulty, lies) = (f, vec![Lie::Collude; f]);
        }
        if program == Some(Fault::HalfAcked) && !faults.contains(&Fault::TooMany) && f > 0 {
            faults.insert(Fault::Liars);
            lies.fill(Lie::ForgedCertificate);
        }
        if hands_over && !faults.contains(&Fault::TooMany) {
            faults.insert(Fault::Liars);
            (faulty, lies) = (1, vec![Lie::Deny]);
        }
        if hosts < agents + faulty {
            faults.retain(|fault| !fault.costs_a_holder());
        }
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
            load_gap_ms: if unscaled { 60_000 } else { 200 + below(rng, 1_600) },
            fault_gap_ms: if unscaled { 120_000 } else { 300 + below(rng, 3_000) },
            canary_s: if unscaled { 1_800 } else { [60, 3_600, 3_600, 3_600][below(rng, 4) as usize] },
            faults,
            faulty,
            tolerated: f,
            lies,
            renew_for_s: None,
            real_signatures: below(rng, 100) == 0,
            trace: None,
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
        if let Some(trace) = &self.trace {
            command += &format!(" --churn {}", trace.file);
        }
        if drawn.storm_ms != self.storm_ms {
            command += &format!(" --storm-ms {}", self.storm_ms);
        }
        command
    }
}
