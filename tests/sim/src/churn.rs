//! Who comes and goes, and when: drawn from Weibull distributions that were fitted to measured meshes, or read from a file.
//!
//! Sessions last hours and a storm lasts seconds: time is compressed, so that a machine leaves about once to four times in a storm.
//!
//! A file has a line for each change, `SECONDS,MACHINE,up` or `SECONDS,MACHINE,down`, in ascending order; lines that begin with `#` are
//! comments. Machines are numbered from 0; those beyond the mesh's are counted modulo its size. The whole file is laid over the storm.

use std::sync::Arc;

use chacha20::ChaCha8Rng;

use crate::plan::below;

/// Lines that a file may have.
const LINES_MAX: usize = 1_000_000;

/// Changes of one machine in one storm.
const CHANGES_MAX: usize = 40;

/// A machine comes or goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// When, as a part of the storm: 0 to 1.
    pub at: f64,
    /// Which.
    pub machine: usize,
    /// Whether it comes.
    pub up: bool,
}

/// A Weibull distribution of how long machines stay, and which part of the time they are there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sessions {
    /// Its name in docs/simulator.md.
    pub name: &'static str,
    /// Below 1: who has stayed longer will stay longer.
    pub shape: f64,
    /// The scale, in hours.
    pub scale_h: f64,
    /// How long machines have been there when the storm begins, in hours.
    pub age_h: f64,
    /// The part of the time that they are there.
    pub there: f64,
}

/// What a seed may draw.
pub const SETS: [Sessions; 3] = [
    // IPFS, all nodes from when they join: half of their sessions end within 2 h, 80 % within 8 h.
    Sessions { name: "fresh", shape: 0.61, scale_h: 3.7, age_h: 0.0, there: 0.75 },
    // Holders in Mainline's table, that have been there for a day.
    Sessions { name: "residual", shape: 0.535, scale_h: 22.2, age_h: 24.0, there: 0.75 },
    // Phones: half of their sessions end within 7 min, one in ten lasts 2.5 h.
    Sessions { name: "mobile", shape: 0.45, scale_h: 0.26, age_h: 0.0, there: 0.23 },
];

/// A file of changes.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Where it was read, for the line that runs a seed again.
    pub file: String,
    /// Its changes.
    pub changes: Vec<Change>,
}

impl Trace {
    /// Reads one.
    pub fn parse(file: &str, text: &str) -> Result<Arc<Self>, String> {
        let mut changes = Vec::new();
        let mut last = 0.0;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why: &str| format!("{file}, line {}: {why}; a line is SECONDS,MACHINE,up or SECONDS,MACHINE,down", number + 1);
            let fields: Vec<&str> = line.split(',').map(str::trim).collect();
            let [seconds, machine, state] = fields[..] else { return Err(wrong("there are not three fields")) };
            let at: f64 = seconds.parse().ok().filter(|at: &f64| at.is_finite() && *at >= last).ok_or_else(|| wrong("time goes back"))?;
            let machine = machine.parse().map_err(|_| wrong("the machine is no number"))?;
            let up = match state {
                "up" => true,
                "down" => false,
                _ => return Err(wrong("the state is neither up nor down")),
            };
            if changes.len() >= LINES_MAX {
                return Err(format!("{file} has more than {LINES_MAX} lines"));
            }
            changes.push(Change { at, machine, up });
            last = at;
        }
        if last <= 0.0 {
            return Err(format!("{file}: nothing happens in it"));
        }
        changes.iter_mut().for_each(|change| change.at /= last);
        Ok(Arc::new(Self { file: file.to_owned(), changes }))
    }

    /// Its changes in a mesh of so many machines.
    pub fn of(&self, machines: usize) -> Vec<Change> {
        self.changes.iter().map(|change| Change { machine: change.machine % machines.max(1), ..*change }).collect()
    }
}

impl Sessions {
    /// How long a machine stays that has been there for `age`, both in scales.
    fn stays(&self, age: f64, rng: &mut ChaCha8Rng) -> f64 {
        let luck = (below(rng, 1 << 32) + 1) as f64 / (1u64 << 32) as f64;
        (age.powf(self.shape) - luck.ln()).powf(1.0 / self.shape) - age
    }

    /// When these machines come and go in one storm.
    pub fn draw(&self, machines: usize, rng: &mut ChaCha8Rng) -> Vec<Change> {
        // How many scales of the distribution pass in the storm.
        let scales = 1.0 + below(rng, 4) as f64;
        let mut changes = Vec::new();
        for machine in 0..machines {
            let mut at = self.stays(self.age_h / self.scale_h, rng);
            let mut up = true;
            for _ in 0..CHANGES_MAX {
                if at >= scales {
                    break;
                }
                up = !up;
                changes.push(Change { at: at / scales, machine, up });
                // Away as long as it stays, on average, times what makes the part of the time right.
                at += if up { self.stays(0.0, rng) } else { self.stays(0.0, rng) * (1.0 - self.there) / self.there };
            }
        }
        changes.sort_by(|left, right| left.at.total_cmp(&right.at));
        changes
    }
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng as _;

    use super::*;

    #[test]
    fn a_file_is_laid_over_the_storm_and_a_wrong_line_is_named() {
        let trace = Trace::parse("t", "# two machines\n0.5,0,down\n2,0,up\n 4 , 7 , down\n").unwrap();
        let change = |at, machine, up| Change { at, machine, up };
        assert_eq!(trace.of(4), [change(0.125, 0, false), change(0.5, 0, true), change(1.0, 3, false)]);
        for (text, line) in
            [("1,2", "line 1"), ("1,0,up\n0,0,down", "line 2"), ("1,x,up", "line 1"), ("1,0,away", "line 1"), ("", "nothing")]
        {
            let error = Trace::parse("t", text).unwrap_err();
            assert!(error.contains(line), "{error}");
        }
    }

    #[test]
    fn the_sets_have_the_medians_that_were_measured() {
        let mut rng = ChaCha8Rng::from_seed([7; 32]);
        let mut median_h = |set: &Sessions| {
            let mut sessions: Vec<f64> = (0..20_001).map(|_| set.stays(0.0, &mut rng) * set.scale_h).collect();
            sessions.sort_by(f64::total_cmp);
            sessions[10_000]
        };
        let [fresh, _, mobile] = SETS;
        assert!((1.9..2.2).contains(&median_h(&fresh)), "half of IPFS's sessions end within 2 h");
        assert!((0.1..0.13).contains(&median_h(&mobile)), "half of the phones' sessions end within 7 min");
    }

    #[test]
    fn who_leaves_comes_back_in_turn() {
        let mut rng = ChaCha8Rng::from_seed([8; 32]);
        for set in SETS {
            let changes = set.draw(9, &mut rng);
            for machine in 0..9 {
                let states: Vec<bool> = changes.iter().filter(|change| change.machine == machine).map(|change| change.up).collect();
                assert!(states.iter().enumerate().all(|(i, up)| *up == (i % 2 == 1)), "{}: {states:?}", set.name);
            }
            assert!(changes.windows(2).all(|pair| pair[0].at <= pair[1].at) && changes.iter().all(|change| change.at < 1.0));
        }
    }
}
