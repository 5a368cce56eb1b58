//! stdout is data, stderr is talk. A reader that hangs up ends the program quietly.

use std::io::Write as _;

/// Writes a line to stdout.
pub(crate) fn line(text: &str) {
    bytes(text.as_bytes());
    bytes(b"\n");
}

/// Writes bytes to stdout, as they are.
pub(crate) fn bytes(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(bytes).and_then(|()| out.flush()) {
        // `persona ... | head` is no failure.
        std::process::exit(i32::from(error.kind() != std::io::ErrorKind::BrokenPipe));
    }
}
