//! Sections whose owner is gone and whose holders renew them among themselves: the lives of everybody in a mesh are drawn, and links follow by
//! the rules of docs/spec/quorum.md#leases.
//!
//! The owner has been there for a day when it puts and vanishes. Who goes is followed by somebody new at once, so the mesh does not shrink.

use chacha20::ChaCha8Rng;
use persona_fragments::lease::{FIRST_TURNS, LINK_TURNS, TURNS};
use persona_mesh_proto::{lease::failures_worth, placement::age};
use serde::Serialize;

use super::{Kind, Share, Tally, at_least, kinds, loss, lost, words};
use crate::{
    lives::{Churn, SETS},
    plan::{below, stream},
    plot::{self, Line, Look, Panel},
};

/// Machines of a mesh, its owner's aside.
pub(super) const CROWD: usize = 24;

const HOUR_S: f64 = 3600.0;

/// A lease that is drawn, with the moments that the table names, in seconds from the put; the last is its end.
#[derive(Clone, Debug)]
pub struct Leased {
    /// What is stored.
    pub kind: Kind,
    /// How long the owner's machine has been there when it puts, in seconds.
    pub known_s: f64,
    /// For how long holders may renew it.
    pub lease_s: f64,
    /// Moments.
    pub named_s: Vec<f64>,
}

impl Leased {
    fn new(kind: Kind, named_h: &[f64]) -> Self {
        let named_s: Vec<f64> = named_h.iter().map(|hours| hours * HOUR_S).collect();
        Self { kind, known_s: 24.0 * HOUR_S, lease_s: *named_s.last().expect("an end"), named_s }
    }

    /// A core for a week.
    pub fn week() -> Self {
        Self::new(kinds()[0], &[24.0, 72.0, 120.0, 168.0])
    }
}

/// What is drawn: the defaults of core and of relationship, and a week.
fn leases() -> [Leased; 3] {
    let day = [1.0, 6.0, 24.0];
    let all = kinds();
    [Leased::new(all[0], &day), Leased::week(), Leased::new(all[1], &day)]
}

/// A machine: since when it has been there, and until when it will be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stay {
    /// Its first moment, in seconds.
    pub(super) since_s: f64,
    /// Its last.
    pub(super) until_s: f64,
}

impl Stay {
    fn is_there(&self, at_s: f64) -> bool {
        self.until_s > at_s
    }
}

/// The machines of a mesh.
pub(super) struct Crowd {
    churn: Churn,
    /// Who is there, by place.
    there: Vec<Stay>,
}

impl Crowd {
    /// At its beginning.
    pub(super) fn new(churn: &Churn, rng: &mut ChaCha8Rng) -> Self {
        let there = (0..CROWD).map(|_| Stay { since_s: 0.0, until_s: churn.life_s(rng) }).collect();
        Self { churn: *churn, there }
    }

    /// Whoever goes until this moment is followed. `follows` is told the place and the follower.
    pub(super) fn until(&mut self, at_s: f64, rng: &mut ChaCha8Rng, mut follows: impl FnMut(usize, Stay)) {
        for (place, stay) in self.there.iter_mut().enumerate() {
            while !stay.is_there(at_s) {
                *stay = Stay { since_s: stay.until_s, until_s: stay.until_s + self.churn.newcomer_s(rng) };
                follows(place, *stay);
            }
        }
    }

    /// So many who are there and are none of `holders`: those before whom whoever asks has known longer, if that is looked at.
    fn choose(&self, count: usize, holders: &[Stay], asks: Stay, at_s: f64, by_age: bool, rng: &mut ChaCha8Rng) -> Vec<Stay> {
        let free = self.there.iter().filter(|stay| !holders.contains(stay) && **stay != asks);
        let known_ms = |stay: &Stay| ((at_s - stay.since_s.max(asks.since_s)) * 1000.0) as u64;
        let rank = |stay: &Stay| std::cmp::Reverse(if by_age { age(known_ms(stay)) } else { 0 });
        let mut free: Vec<_> = free.map(|stay| (rank(stay), below(rng, 1 << 32), *stay)).collect();
        free.sort_unstable_by_key(|(age, luck, _)| (*age, *luck));
        free.into_iter().take(count).map(|(_, _, stay)| stay).collect()
    }
}

/// What became of many leased sections.
pub(super) struct Drawn {
    pub(super) tally: Tally,
    /// Holders that were there at one link, and of these, that were not at the next.
    held: u64,
    gone: u64,
}

/// Moments of a lease that are counted: enough for a line, and among them whole days and hours. The last is just before its end.
fn moments(lease_s: f64) -> Vec<f64> {
    let step_s = if lease_s > 48.0 * HOUR_S { 2.0 * HOUR_S } else { 0.5 * HOUR_S };
    let steps = (lease_s / step_s).round() as usize;
    (0..=steps).map(|step| if step == steps { lease_s - 1.0 } else { step as f64 * step_s }).collect()
}

/// Draws so many sections.
pub(super) fn draw(leased: &Leased, churn: &Churn, by_age: bool, sections: u64, rng: &mut ChaCha8Rng) -> Drawn {
    let mut drawn = Drawn { tally: Tally::new(moments(leased.lease_s), sections), held: 0, gone: 0 };
    for _ in 0..sections {
        draw_one(leased, churn, by_age, &mut drawn, rng);
    }
    drawn
}

fn draw_one(leased: &Leased, churn: &Churn, by_age: bool, drawn: &mut Drawn, rng: &mut ChaCha8Rng) {
    let Drawn { tally, held, gone: all_gone } = drawn;
    let (Kind { shape, ttl_s, .. }, known_s) = (leased.kind, leased.known_s);
    let (n, k, f) = (usize::from(shape.n()), usize::from(shape.k()), usize::from(shape.f()));
    let turn_s = ttl_s / TURNS as f64;
    let mut crowd = Crowd::new(churn, rng);
    crowd.until(known_s, rng, |_, _| {});
    let owner = Stay { since_s: 0.0, until_s: known_s };
    let mut holders = crowd.choose(n, &[], owner, known_s, by_age, rng);
    let first_leader = below(rng, n as u64);
    let (mut issued_s, mut changes, mut point) = (0.0, 0, 0);
    loop {
        // The next link: the first turn, once it is due, whose leader is there and has a quorum.
        let expires_s = f64::min(issued_s + ttl_s, leased.lease_s);
        let (issued, turns_off) = ((issued_s / turn_s).round() as u64, if issued_s == 0.0 { FIRST_TURNS } else { LINK_TURNS });
        let turns =
            (issued + turns_off..issued + TURNS).map(|turn| (turn as f64 * turn_s, holders[((turn + first_leader) % n as u64) as usize]));
        let gone_at = |at_s: f64| holders.iter().filter(|holder| !holder.is_there(known_s + at_s)).count();
        let mut led = turns.filter(|(at_s, leader)| leader.is_there(known_s + at_s) && gone_at(*at_s) <= f);
        // One that lives until the lease ends needs no other.
        let link = led.next().filter(|_| expires_s < leased.lease_s);
        let until_s = link.map_or(expires_s, |(at_s, _)| at_s);
        while point < tally.at_s.len() && tally.at_s[point] < until_s {
            let there = n - gone_at(tally.at_s[point]);
            tally.whole[point] += u64::from(there >= k);
            tally.fresh[point] += u64::from(there >= n - f);
            point += 1;
        }
        let Some((at_s, leader)) = link else { return };
        let gone = gone_at(at_s);
        *held += n as u64;
        *all_gone += gone as u64;
        let worth = failures_worth(shape, changes, (at_s * 1000.0) as u64, (leased.lease_s * 1000.0) as u64);
        if gone > 0 && worth.is_some_and(|worth| gone >= worth) {
            crowd.until(known_s + at_s, rng, |_, _| {});
            let mut new = crowd.choose(gone, &holders, leader, known_s + at_s, by_age, rng).into_iter();
            for holder in holders.iter_mut().filter(|holder| !holder.is_there(known_s + at_s)) {
                *holder = new.next().unwrap_or(*holder);
            }
            changes += 1;
        }
        issued_s = at_s;
    }
}

/// One line of the table of leases.
#[derive(Clone, Debug, Serialize)]
pub struct LeasedRow {
    /// The class.
    pub class: &'static str,
    /// n, k, f.
    pub shape: (u8, u8, u8),
    /// The churn.
    pub churn: &'static str,
    /// For how long holders may renew it, in seconds.
    pub lease_s: f64,
    /// Seconds from the put.
    pub after_s: f64,
    /// Sections that could be reconstructed.
    pub reconstructible: Share,
    /// Sections that could be read in mode `regular`.
    pub regular: Share,
    /// Sections that could be reconstructed where places go to anybody, however long he has been there.
    pub reconstructible_any_age: Share,
    /// The share of holders that are still there at the next link.
    pub holder_stays: f64,
    /// By the formula: at each link a quorum of `n`, each there with `holder_stays`.
    pub formula: f64,
    /// As many full copies as the level has, made whole again as often.
    pub copies: f64,
}

/// Draws every lease under every churn, one thread for each churn; and the plot.
pub fn draw_leased(sections: u64, seed: u64) -> (Vec<LeasedRow>, String) {
    let drawn: Vec<(Vec<LeasedRow>, Panel)> = std::thread::scope(|scope| {
        let begin = |churn: Churn| scope.spawn(move || under(&churn, sections, seed));
        let all: Vec<_> = SETS.into_iter().map(begin).collect();
        all.into_iter().map(|one| one.join().expect("drawing does not panic")).collect()
    });
    let (rows, panels): (Vec<_>, Vec<_>) = drawn.into_iter().unzip();
    let title = format!("leased, owner gone: a mesh of {CROWD} that the owner has known for a day");
    (rows.into_iter().flatten().collect(), plot::nines(&title, "share of sections, in nines", &panels, &LOOKS))
}

fn under(churn: &Churn, sections: u64, seed: u64) -> (Vec<LeasedRow>, Panel) {
    let mut rows = Vec::new();
    let mut lines = Vec::new();
    let mut x_max = 0.0f64;
    for (leased, names) in leases().iter().zip(LOOKS.chunks(2)) {
        let mut rng = stream(seed, &format!("leased {} {} {}", leased.kind.class.name(), leased.lease_s, churn.name));
        let drawn = draw(leased, churn, true, sections, &mut rng);
        let any_age = draw(leased, churn, false, sections, &mut rng);
        rows.extend(leased.named_s.iter().map(|after_s| row(leased, churn, *after_s, &drawn, &any_age.tally)));
        let tally = drawn.tally;
        // With its end a lease ends, however many have it.
        let ends = |mut points: Vec<(f64, f64)>| {
            points.push((leased.lease_s, 0.0));
            points
        };
        lines.push(Line { name: names[0].0.into(), points: ends(tally.points(&tally.whole)) });
        lines.push(Line { name: names[1].0.into(), points: ends(tally.points(&tally.fresh)) });
        x_max = x_max.max(leased.lease_s);
    }
    let days = (x_max / (24.0 * HOUR_S)).round() as u32;
    let x_ticks = (0..=days).map(|day| (f64::from(day) * 24.0 * HOUR_S, format!("{day} d"))).collect();
    (rows, Panel { title: churn.name.into(), x_max, x_ticks, lines })
}

const LOOKS: [(&str, Look); 6] = [
    ("core, 24 h, reconstructible", ("#1f5fa8", "6 3")),
    ("core, 24 h, regular", ("#c0392b", "6 3")),
    ("core, 7 days, reconstructible", ("#1f5fa8", "")),
    ("core, 7 days, regular", ("#c0392b", "")),
    ("relationship, 24 h, reconstructible", ("#2e8b57", "")),
    ("relationship, 24 h, regular", ("#e08a1e", "")),
];

fn row(leased: &Leased, churn: &Churn, after_s: f64, drawn: &Drawn, any_age: &Tally) -> LeasedRow {
    let tally = &drawn.tally;
    let Kind { class, level, shape, ttl_s } = leased.kind;
    let holder_stays = 1.0 - drawn.gone as f64 / drawn.held.max(1) as f64;
    let links = (after_s / ttl_s * (TURNS / LINK_TURNS) as f64).floor().max(1.0);
    LeasedRow {
        class: class.name(),
        shape: (shape.n(), shape.k(), shape.f()),
        churn: churn.name,
        lease_s: leased.lease_s,
        after_s,
        reconstructible: tally.at(&tally.whole, after_s),
        regular: tally.at(&tally.fresh, after_s),
        reconstructible_any_age: any_age.at(&any_age.whole, after_s),
        holder_stays,
        formula: at_least(shape.n() - shape.f(), shape.n(), holder_stays).powf(links),
        copies: (1.0 - (1.0 - holder_stays).powi(i32::from(level))).powf(links),
    }
}

impl LeasedRow {
    /// As a line of a table.
    pub fn line(&self) -> String {
        let Self {
            class, churn, lease_s, after_s, reconstructible, regular, reconstructible_any_age, holder_stays, formula, copies, ..
        } = self;
        let [whole, fresh, any_age] = [reconstructible, regular, reconstructible_any_age].map(lost);
        let (lease, after) = (words(*lease_s), words(*after_s));
        format!(
            "| {class} | {lease} | {churn} | {after} | {whole} | {fresh} | {any_age} | {:.2} % | {} | {} |",
            100.0 * (1.0 - holder_stays),
            loss(1.0 - formula),
            loss(1.0 - copies)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY_GOES: Churn = Churn { name: "none", about: "", shape: 1.0, scale_h: 1e9, from_the_start: true };

    #[test]
    fn where_nobody_goes_nothing_is_lost_and_where_everybody_does_it_is_lost_with_its_lifetime() {
        let mut rng = stream(3, "leases");
        let Drawn { tally, held, gone } = draw(&Leased::week(), &NOBODY_GOES, true, 3, &mut rng);
        assert!(tally.whole.iter().chain(&tally.fresh).all(|count| *count == 3));
        assert_eq!(gone, 0);
        // Links after a half, and then after each quarter of an hour, until one lives to the end of the week.
        assert_eq!(held, 3 * 10 * ((7 * 24 - 1) * 4 - 1));

        let all_go = Churn { scale_h: 0.01, ..NOBODY_GOES };
        let tally = draw(&Leased::week(), &all_go, true, 3, &mut rng).tally;
        assert_eq!((tally.whole[0], tally.whole[1], tally.whole[84]), (3, 0, 0));
    }

    #[test]
    fn who_has_been_there_for_long_keeps_a_section_for_longer() {
        let (week, residual) = (Leased::week(), SETS[0]);
        let lost = |by_age: bool| 1500 - draw(&week, &residual, by_age, 1500, &mut stream(4, "leases")).tally.whole[84];
        let (old, anybody) = (lost(true), lost(false));
        assert!(old * 4 < anybody, "of 1500 {old} were lost with old holders, {anybody} with any");
        assert!(old < 15, "{old} of 1500 were lost in a week");
    }

    #[test]
    fn a_crowd_is_always_as_large_and_followers_come_when_others_go() {
        let mut rng = stream(5, "crowd");
        let mut crowd = Crowd::new(&SETS[0], &mut rng);
        let mut came = 0;
        let mut ends: Vec<f64> = crowd.there.iter().map(|stay| stay.until_s).collect();
        crowd.until(48.0 * HOUR_S, &mut rng, |place, stay| {
            assert_eq!(stay.since_s, ends[place]);
            assert!(stay.until_s > stay.since_s);
            ends[place] = stay.until_s;
            came += 1;
        });
        assert!(crowd.there.len() == CROWD && crowd.there.iter().all(|stay| stay.is_there(48.0 * HOUR_S)));
        assert!((100..600).contains(&came), "{came} came in two days");
    }
}
