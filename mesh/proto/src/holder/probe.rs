//! What a holder tells an owner's host that looks after its sections (docs/spec/quorum.md#probing-and-re-placement).

use std::cmp::Ordering;

use super::{Holder, HolderOut};
use crate::{
    message::{Holding, ProbedSection, Response},
    time::Now,
};

impl Holder {
    pub(super) fn probe(&mut self, sections: &[ProbedSection], now: Now, out: &mut Vec<HolderOut>) -> Response {
        let mut holdings = Vec::with_capacity(sections.len());
        for asked in sections {
            let recovering = self.forgot(&asked.key);
            if recovering {
                self.ask_recovery(&asked.key, None, None, now, out);
            }
            holdings.push(Holding { held: self.holds(asked, now), recovering });
        }
        Response::Probed { clock_ms: now.wall_ms, sections: holdings }
    }

    /// Whether the version that is asked for, or a higher one, is certified here, and its shard is where it should be.
    fn holds(&self, asked: &ProbedSection, now: Now) -> bool {
        let Some(head) = self.live_head(&asked.key, now).filter(|_| !self.withholds(&asked.key)) else { return false };
        let certified = head.head.manifest.version;
        match certified.cmp(&asked.version) {
            Ordering::Less => false,
            Ordering::Equal => self.sections[&asked.key].shard_of(&certified).is_some(),
            Ordering::Greater => true,
        }
    }
}
