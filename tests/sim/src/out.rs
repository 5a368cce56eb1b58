//! What goes to stdout, and ends there: `persona-sim ... | head` is no reason to panic.

use std::{fmt::Arguments, io::Write as _};

/// Writes to stdout. If whoever reads there has had enough this process ends as others do then, by 128 + SIGPIPE: what it found was not told.
pub fn write(text: Arguments<'_>) {
    if let Err(error) = std::io::stdout().lock().write_fmt(text) {
        std::process::exit(if error.kind() == std::io::ErrorKind::BrokenPipe { 141 } else { 1 });
    }
}

/// A line on stdout; see [`write()`].
#[macro_export]
macro_rules! line {
    ($($text:tt)*) => { $crate::out::write(format_args!("{}\n", format_args!($($text)*))) };
}
