//! How long sections survive churn: by formula, by drawing the lives of holders, and by running whole nodes.
//!
//! A section with shape (n, k, f) can be reconstructed while `k` of its holders are there, and read at quorum while `n - f` are. What has
//! to be rare is seen by drawing lives alone, of millions of sections; that this says what the real nodes do is shown where both can be
//! counted: [`real()`] runs meshes of production nodes whose owners vanish, or stay, and asks them (docs/survival.md).

use std::fmt;

use chacha20::ChaCha8Rng;
use persona_fragments::{Class, Classes, Shape};
use serde::Serialize;

use crate::{
    lives::Churn,
    plan::{below, stream},
    plot::{self, Line, Look, Panel},
};

mod leased;
mod meshes;

pub use leased::{Leased, LeasedRow, draw_leased};
pub use meshes::{Beside, LeasedReal, REAL, Real, real, real_leased};

/// A renewal is due after a third of the lifetime.
const RENEWALS_PER_TTL: f64 = 3.0;

/// And comes up to a tenth of that earlier or later.
const JITTER: f64 = 0.1;

/// Points in time at which a share is counted, from 0 to the end.
const POINTS: usize = 60;

/// How long a plot with an owner goes on, in lifetimes.
const LIFETIMES_SHOWN: f64 = 3.0;

/// Who keeps a section alive, where holders do not renew it among themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Keeper {
    /// Nobody: its owner vanished right after the put, and it ends with its lifetime.
    Nobody,
    /// Its owner, by renewals that replace lost holders.
    Owner,
}

/// What is stored how.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The class.
    pub class: Class,
    /// Its level: as many copies are the alternative.
    pub level: u8,
    /// Its shape.
    pub shape: Shape,
    /// Its lifetime, in seconds.
    pub ttl_s: f64,
}

/// Core, relationship and active, as they are by default and in a mesh with enough nodes.
pub fn kinds() -> Vec<Kind> {
    let classes = Classes::default();
    let kind = |class: Class| {
        let spec = classes.of(class);
        let shape = Shape::for_level(spec.level, usize::from(Shape::holders_wanted(spec.level))).expect("enough holders");
        Kind { class, level: spec.level, shape, ttl_s: spec.ttl.as_secs_f64() }
    };
    [Class::Core, Class::Relationship, Class::Active].map(kind).to_vec()
}

/// The chance that at least `wanted` of `of` are there, each with chance `there`.
pub fn at_least(wanted: u8, of: u8, there: f64) -> f64 {
    let gone = 1.0 - there;
    let mut lost = 0.0;
    let mut ways = 1.0; // of choosing `left` out of `of`
    for left in 0..wanted {
        lost += ways * there.powi(i32::from(left)) * gone.powi(i32::from(of - left));
        ways = ways * f64::from(of - left) / f64::from(left + 1);
    }
    1.0 - lost
}

/// A share that was counted, with its 95 % confidence interval (Wilson).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    /// Of so many.
    pub of: u64,
    /// So many.
    pub count: u64,
    /// The share.
    pub share: f64,
    /// The interval's lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Share {
    /// `count` of `of`.
    pub fn new(count: u64, of: u64) -> Self {
        const Z: f64 = 1.959_964;
        let (all, share) = (of.max(1) as f64, count as f64 / of.max(1) as f64);
        let middle = share + Z * Z / (2.0 * all);
        let half = Z * (share * (1.0 - share) / all + Z * Z / (4.0 * all * all)).sqrt();
        let whole = 1.0 + Z * Z / all;
        let low = if count == 0 { 0.0 } else { (middle - half) / whole };
        let high = if count == of { 1.0 } else { (middle + half) / whole };
        Self { of, count, share, low, high }
    }
}

/// What became of many sections of one kind, at some moments.
struct Tally {
    /// The moments, ascending, in seconds.
    at_s: Vec<f64>,
    sections: u64,
    /// Sections that could be reconstructed at each.
    whole: Vec<u64>,
    /// Sections that could be read in mode `regular`.
    fresh: Vec<u64>,
}

impl Tally {
    fn new(at_s: Vec<f64>, sections: u64) -> Self {
        Self { whole: vec![0; at_s.len()], fresh: vec![0; at_s.len()], at_s, sections }
    }

    /// A share of which nothing was lost is drawn as if one section had been: more cannot be told.
    fn points(&self, counts: &[u64]) -> Vec<(f64, f64)> {
        let share = |count: u64| count.min(self.sections - 1) as f64 / self.sections as f64;
        self.at_s.iter().zip(counts).map(|(at_s, count)| (*at_s, share(*count))).collect()
    }

    /// What was counted at the moment that is closest.
    fn at(&self, counts: &[u64], seconds: f64) -> Share {
        let far = |point: &usize| (self.at_s[*point] - seconds).abs();
        let closest = (0..self.at_s.len()).min_by(|one, other| far(one).total_cmp(&far(other)));
        Share::new(counts[closest.expect("a moment")], self.sections)
    }
}

/// Draws the lives of the holders of so many sections. With an owner every renewal replaces who is gone; a machine that is chosen then is
/// one of those that are there, with the rest of a life like the others'. `aged`: no machine came since the beginning, so that whoever is
/// chosen later has stayed that long.
fn draw(kind: &Kind, churn: &Churn, keeper: Keeper, sections: u64, end_s: f64, aged: bool, rng: &mut ChaCha8Rng) -> Tally {
    let (n, k, f) = (usize::from(kind.shape.n()), usize::from(kind.shape.k()), usize::from(kind.shape.f()));
    let mut tally = Tally::new((0..=POINTS).map(|point| end_s * point as f64 / POINTS as f64).collect(), sections);
    let mut ends = vec![0.0f64; n];
    for _ in 0..sections {
        ends.iter_mut().for_each(|end| *end = churn.life_s(rng));
        let mut since_s = 0.0;
        let mut point = 0;
        loop {
            let pause_s = kind.ttl_s / RENEWALS_PER_TTL * (1.0 + JITTER * (below(rng, 2001) as f64 / 1000.0 - 1.0));
            let until_s = if keeper == Keeper::Owner { since_s + pause_s } else { kind.ttl_s };
            ends.sort_unstable_by(f64::total_cmp);
            let (lost_s, stale_s) = (ends[n - k], ends[f]);
            while point <= POINTS && tally.at_s[point] <= until_s {
                let at_s = tally.at_s[point];
                tally.whole[point] += u64::from(at_s < lost_s);
                tally.fresh[point] += u64::from(at_s < stale_s);
                point += 1;
            }
            if point > POINTS || keeper == Keeper::Nobody {
                break;
            }
            for end in ends.iter_mut().filter(|end| **end <= until_s) {
                *end = if aged { churn.life_beyond_s(rng, until_s) } else { until_s + churn.life_s(rng) };
            }
            since_s = until_s;
        }
    }
    tally
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The class.
    pub class: &'static str,
    /// n, k, f.
    pub shape: (u8, u8, u8),
    /// The churn.
    pub churn: &'static str,
    /// Who keeps it.
    pub keeper: Keeper,
    /// Seconds from the put.
    pub after_s: f64,
    /// The share that one more holder is still there.
    pub holder_stays: f64,
    /// Sections that could be reconstructed.
    pub reconstructible: Share,
    /// By the formula, all shards placed. With an owner: since its last renewal, all holders being new then.
    pub formula_placed: f64,
    /// By the formula, with the shards of `n - f` alone.
    pub formula_at_commit: f64,
    /// As many full copies as the level has.
    pub copies: f64,
    /// Sections that could be read in mode `regular`.
    pub regular: Share,
    /// By the formula.
    pub formula_regular: f64,
}

/// All that was counted.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Sections drawn for each line.
    pub sections: u64,
    /// The table.
    pub rows: Vec<Row>,
    /// What whole nodes did.
    pub real: Vec<Real>,
    /// Sections drawn for each line of those with leases.
    pub leased_sections: u64,
    /// The table of leases.
    pub leased: Vec<LeasedRow>,
    /// What whole nodes did with leases.
    pub real_leased: Vec<LeasedReal>,
}

/// Draws for every class and every churn; the plots are by class.
pub fn draw_all(sections: u64, seed: u64) -> (Vec<Row>, Vec<(Class, String)>) {
    let mut rows = Vec::new();
    let mut plots = Vec::new();
    for kind in kinds() {
        let mut panels = Vec::new();
        for churn in crate::lives::SETS {
            let mut rng = stream(seed, &format!("{} {}", kind.class.name(), churn.name));
            let end_s = kind.ttl_s * LIFETIMES_SHOWN;
            let alone = draw(&kind, &churn, Keeper::Nobody, sections, kind.ttl_s, false, &mut rng);
            let kept = draw(&kind, &churn, Keeper::Owner, sections / 10, end_s, false, &mut rng);
            rows.push(row(&kind, &churn, Keeper::Nobody, kind.ttl_s / RENEWALS_PER_TTL, &alone));
            rows.push(row(&kind, &churn, Keeper::Nobody, kind.ttl_s, &alone));
            rows.push(row(&kind, &churn, Keeper::Owner, end_s, &kept));
            panels.push(panel(&kind, &churn, &alone, &kept));
        }
        let (n, k, f) = (kind.shape.n(), kind.shape.k(), kind.shape.f());
        let title = format!("{}: n = {n}, k = {k}, f = {f}, lifetime {}", kind.class.name(), words(kind.ttl_s));
        plots.push((kind.class, plot::nines(&title, "share of sections, in nines", &panels, &LOOKS)));
    }
    (rows, plots)
}

fn row(kind: &Kind, churn: &Churn, keeper: Keeper, after_s: f64, tally: &Tally) -> Row {
    let Kind { shape, level, .. } = kind;
    // An owner's formula is that of the moment just before a renewal, when most is lost.
    let since_s = if keeper == Keeper::Owner { kind.ttl_s / RENEWALS_PER_TTL * (1.0 + JITTER) } else { after_s };
    let there = churn.stays(since_s);
    Row {
        class: kind.class.name(),
        shape: (shape.n(), shape.k(), shape.f()),
        churn: churn.name,
        keeper,
        after_s,
        holder_stays: there,
        reconstructible: tally.at(&tally.whole, after_s),
        formula_placed: at_least(shape.k(), shape.n(), there),
        formula_at_commit: at_least(shape.k(), shape.n() - shape.f(), there),
        copies: 1.0 - (1.0 - there).powi(i32::from(*level)),
        regular: tally.at(&tally.fresh, after_s),
        formula_regular: at_least(shape.n() - shape.f(), shape.n(), there),
    }
}

const LOOKS: [(&str, Look); 7] = [
    ("reconstructible, owner gone", ("#1f5fa8", "")),
    ("reconstructible, owner there", ("#1f5fa8", "6 3")),
    ("regular, owner gone", ("#c0392b", "")),
    ("regular, owner there", ("#c0392b", "6 3")),
    ("formula, all placed", ("#7fb3e6", "2 3")),
    ("formula, at commit", ("#555555", "2 3")),
    ("as many full copies as the level", ("#2e8b57", "1 4")),
];

fn panel(kind: &Kind, churn: &Churn, alone: &Tally, kept: &Tally) -> Panel {
    let formula = |share: &dyn Fn(f64) -> f64| -> Vec<(f64, f64)> {
        let at_s = |point: usize| kind.ttl_s * point as f64 / POINTS as f64;
        (1..=POINTS).map(|point| (at_s(point), share(churn.stays(at_s(point))))).collect()
    };
    let (n, k, f) = (kind.shape.n(), kind.shape.k(), kind.shape.f());
    // With its lifetime a version ends, however many holders have it.
    let ends = |mut points: Vec<(f64, f64)>| {
        points.push((kind.ttl_s, 0.0));
        points
    };
    let lines = [
        ("formula, all placed", formula(&|there| at_least(k, n, there))),
        ("formula, at commit", formula(&|there| at_least(k, n - f, there))),
        ("as many full copies as the level", formula(&|there| 1.0 - (1.0 - there).powi(i32::from(kind.level)))),
        ("reconstructible, owner gone", ends(alone.points(&alone.whole))),
        ("reconstructible, owner there", kept.points(&kept.whole)),
        ("regular, owner gone", ends(alone.points(&alone.fresh))),
        ("regular, owner there", kept.points(&kept.fresh)),
    ];
    let ticks = (0..=LIFETIMES_SHOWN as u32).map(|lifetimes| kind.ttl_s * f64::from(lifetimes)).map(|at_s| (at_s, words(at_s)));
    Panel {
        title: format!("{}: {:.1} % of holders gone in a lifetime", churn.name, 100.0 * (1.0 - churn.stays(kind.ttl_s))),
        x_max: kind.ttl_s * LIFETIMES_SHOWN,
        x_ticks: ticks.collect(),
        lines: lines.into_iter().map(|(name, points)| Line { name: name.into(), points }).collect(),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} sections drawn for each line (a tenth of that where the owner stays); 95 % intervals", self.sections)?;
        writeln!(
            f,
            "| class | churn | owner | after | reconstructible lost | formula, placed | formula, at commit | full copies | not `regular` | formula |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|---|")?;
        for row in &self.rows {
            let Row { class, churn, keeper, after_s, reconstructible, regular, .. } = row;
            let owner = owner(*keeper);
            let (lost, stale) = (lost(reconstructible), lost(regular));
            let formulas = [row.formula_placed, row.formula_at_commit, row.copies, row.formula_regular].map(|share| loss(1.0 - share));
            let [placed, commit, copies, at_quorum] = formulas;
            let after = words(*after_s);
            writeln!(f, "| {class} | {churn} | {owner} | {after} | {lost} | {placed} | {commit} | {copies} | {stale} | {at_quorum} |")?;
        }
        writeln!(f, "\nleased, owner gone; {} sections drawn for each line", self.leased_sections)?;
        writeln!(
            f,
            "| class | lease | churn | after | reconstructible lost | not `regular` | lost, any age | gone between links | formula | full copies |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|---|")?;
        for row in &self.leased {
            writeln!(f, "{}", row.line())?;
        }
        if !self.real.is_empty() {
            writeln!(f, "\nwhole nodes, class core, beside lives that are drawn")?;
            writeln!(f, "| churn | owner | after | asked | reconstructible | drawn | `regular` | drawn |")?;
            writeln!(f, "|---|---|---|---|---|---|---|---|")?;
        }
        for Real { churn, keeper, beside } in &self.real {
            writeln!(f, "| {churn} | {} | {beside}", owner(*keeper))?;
        }
        if !self.real_leased.is_empty() {
            writeln!(f, "\nwhole nodes, class core, owner gone, leased")?;
            writeln!(f, "| churn | lease | after | asked | reconstructible | drawn | `regular` | drawn |")?;
            writeln!(f, "|---|---|---|---|---|---|---|---|")?;
        }
        for LeasedReal { churn, lease_s, beside } in &self.real_leased {
            writeln!(f, "| {churn} | {} | {beside}", words(*lease_s))?;
        }
        Ok(())
    }
}

fn owner(keeper: Keeper) -> &'static str {
    if keeper == Keeper::Owner { "there" } else { "gone" }
}

/// The share that is lost, with its interval.
fn lost(share: &Share) -> String {
    let [lost, least, most] = [share.share, share.high, share.low].map(|kept| loss(1.0 - kept));
    format!("{lost} ({least} to {most})")
}

/// A loss, with two digits.
fn loss(loss: f64) -> String {
    if loss == 0.0 { "0".into() } else { format!("{loss:.1e}") }
}

fn words(seconds: f64) -> String {
    match seconds {
        seconds if seconds >= 48.0 * 3600.0 || seconds == 24.0 * 3600.0 => format!("{} d", seconds / 86_400.0),
        seconds if seconds >= 3600.0 => format!("{} h", seconds / 3600.0),
        seconds if seconds >= 120.0 => format!("{} min", seconds / 60.0),
        seconds => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formula_counts_every_way_to_lose() {
        assert!((at_least(1, 1, 0.7) - 0.7).abs() < 1e-12);
        assert!((at_least(2, 4, 0.9) - (1.0 - 3.7e-3)).abs() < 1e-5); // docs/survival.md: 4 holders, 2 suffice
        assert!((1.0 - at_least(3, 10, 0.8) - 7.8e-5).abs() < 1e-6);
        assert!((1.0 - at_least(3, 7, 0.9) - 1.8e-4).abs() < 1e-5);
    }

    #[test]
    fn lives_that_are_drawn_lose_what_the_formula_says() {
        let mut rng = stream(2, "formula");
        for kind in kinds() {
            let churn = Churn { name: "harsh", about: "", shape: 1.0, scale_h: 1.5 * kind.ttl_s / 3600.0, from_the_start: true };
            let tally = draw(&kind, &churn, Keeper::Nobody, 20_000, kind.ttl_s, false, &mut rng);
            let there = churn.stays(kind.ttl_s);
            let (whole, fresh) = (tally.at(&tally.whole, kind.ttl_s), tally.at(&tally.fresh, kind.ttl_s));
            assert!((whole.share - at_least(kind.shape.k(), kind.shape.n(), there)).abs() < 0.012, "{whole:?}");
            assert!((fresh.share - at_least(kind.shape.n() - kind.shape.f(), kind.shape.n(), there)).abs() < 0.012, "{fresh:?}");
        }
    }
}
