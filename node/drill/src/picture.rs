//! Where the shards are, drawn with letters: a column per node, a row per section.
//!
//! ```text
//! node                01  02  03  04  05
//! home of                mira tom
//! core 10, any 3       0   .   2  x1   .
//! ```
//! A number is the index of the shard that a node holds, `.` is none, `x` before it is a dead node's. It fits 80 columns, without colour.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// How many nodes stand side by side: 18 columns of label and 15 of 4 fill 78.
const NODES_PER_BLOCK: usize = 15;
const LABEL_COLUMNS: usize = 18;
const NODE_COLUMNS: usize = 4;

/// One section.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is called. Longer names are cut.
    pub label: String,
    /// Which node holds which shard.
    pub shards: BTreeMap<usize, usize>,
}

/// Draws `nodes` nodes: the dead marked, homes named by the agent that lives there, a row for each section.
pub fn draw(nodes: usize, dead: &BTreeSet<usize>, homes: &BTreeMap<usize, String>, rows: &[Row]) -> String {
    let mut picture = String::new();
    for first in (0..nodes).step_by(NODES_PER_BLOCK) {
        let block = first..nodes.min(first + NODES_PER_BLOCK);
        let mut line = |label: &str, cell: &dyn Fn(usize) -> String| {
            let mut text = pad(label, LABEL_COLUMNS);
            for node in block.clone() {
                let _ = write!(text, "{:>NODE_COLUMNS$}", cell(node));
            }
            let _ = writeln!(picture, "{}", text.trim_end());
        };
        line("node", &|node| format!("{}{:02}", mark(dead, node), node + 1));
        line("home of", &|node| homes.get(&node).map_or_else(String::new, |name| name.chars().take(NODE_COLUMNS - 1).collect()));
        for row in rows {
            line(&row.label, &|node| row.shards.get(&node).map_or_else(|| ".".to_owned(), |shard| format!("{}{shard}", mark(dead, node))));
        }
    }
    picture
}

fn mark(dead: &BTreeSet<usize>, node: usize) -> &'static str {
    if dead.contains(&node) { "x" } else { "" }
}

/// `label` cut or filled to `columns`.
fn pad(label: &str, columns: usize) -> String {
    let mut cut: String = label.chars().take(columns).collect();
    cut.extend(std::iter::repeat_n(' ', columns - cut.chars().count()));
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(label: &str, shards: &[(usize, usize)]) -> Row {
        Row { label: label.to_owned(), shards: shards.iter().copied().collect() }
    }

    #[test]
    fn shows_who_holds_what_and_who_is_dead() {
        let homes = BTreeMap::from([(1, "mira".to_owned()), (3, "tomas".to_owned())]);
        let rows = [row("core 4, any 2", &[(0, 3), (2, 0), (3, 1), (4, 2)]), row("a label that is far too long", &[(2, 0)])];
        let picture = draw(5, &BTreeSet::from([1, 2]), &homes, &rows);
        let expected = "\
node                01 x02 x03  04  05
home of                mir     tom
core 4, any 2        3   .  x0   1   2
a label that is fa   .   .  x0   .   .
";
        assert_eq!(picture, expected);
    }

    #[test]
    fn fits_eighty_columns_whatever_the_mesh() {
        let shards: Vec<(usize, usize)> = (0..40).map(|node| (node, node)).collect();
        let dead: BTreeSet<usize> = (0..40).collect();
        let picture = draw(40, &dead, &BTreeMap::new(), &[row("relationship/everybody", &shards)]);
        assert!(picture.lines().all(|line| line.chars().count() <= 80), "{picture}");
        assert_eq!(picture.lines().count(), 3 * 3);
        assert!(picture.contains("x39"));
    }
}
