//! Who has its shards now? Asked of any sound node, as anybody can, again and again: repairs and refills are measured by it.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::field::{Field, Phase};
use super::load::answered;
use crate::api::{ApiError, flag, list, number, query, text};

/// How many sections are looked at together. One takes 2 s while a holder is silent.
const TOGETHER: usize = 6;
/// How long between two looks at all of them.
const PAUSE: Duration = Duration::from_secs(1);

/// Looks at every section until the run is over.
pub(super) async fn watch(field: Arc<Field>) {
    let mut turn = 0;
    while field.phase() != Phase::Over {
        let sections = field.state().sections.len();
        let mut looks = JoinSet::new();
        for section in 0..sections {
            if looks.len() >= TOGETHER {
                looks.join_next().await;
            }
            turn += 1;
            let field = Arc::clone(&field);
            looks.spawn(async move { look(&field, section, turn).await });
        }
        while looks.join_next().await.is_some() {}
        field.wait(PAUSE).await;
    }
}

/// Looks at one section from one sound node. A look that fails is made up for by the next.
pub(super) async fn look(field: &Field, section: usize, turn: usize) -> bool {
    let sound = field.sound();
    let Some(asked) = sound.get(turn % sound.len().max(1)).and_then(|node| field.ask(*node)) else { return false };
    let key = field.state().sections[section].key.clone();
    let begun = field.now();
    let Ok(answer) = answered(asked.api.get(&format!("/v1/analyze{}", query(&[("key", &key)])))).await else { return false };
    let holders = list(&answer, "/holders").and_then(|holders| {
        let read =
            |holder| Ok((text(holder, "/peer_id")?.to_owned(), text(holder, "/answer")? == "committed" && flag(holder, "/has_shard")?));
        holders.iter().map(read).collect::<Result<Vec<_>, ApiError>>()
    });
    let (Ok(holders), Ok(n)) = (holders, number(&answer, "/n")) else { return false };
    let now = field.now();
    field.state().saw(section, begun, now, n, holders);
    true
}
