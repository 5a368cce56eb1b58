//! A drill tells what it does while it does it: short lines, each with the seconds since it began.

use std::io::Write;
use std::time::Instant;

/// Tells a story to a terminal, a file or a test.
pub struct Story<'w> {
    out: &'w mut (dyn Write + Send),
    began: Instant,
}

impl<'w> Story<'w> {
    /// Begins now. What cannot be written (a closed pipe) is lost: a drill goes on without listeners.
    pub fn begin(out: &'w mut (dyn Write + Send)) -> Self {
        Self { out, began: Instant::now() }
    }

    /// One line.
    pub fn tell(&mut self, line: impl AsRef<str>) {
        let _ = writeln!(self.out, "[{:5.1} s] {}", self.seconds(), line.as_ref());
        let _ = self.out.flush();
    }

    /// Lines without a time, set in a little.
    pub fn show(&mut self, block: &str) {
        for line in block.lines() {
            let _ = writeln!(self.out, "  {line}");
        }
        let _ = self.out.flush();
    }

    /// Seconds since the story began.
    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
}
