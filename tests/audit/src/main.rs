//! `persona-audit FILE`: reads a history, one JSON event a line, and prints what may not have happened, one JSON finding a line. How often
//! each thing was seen goes to the error output. Exit status 1: there are findings; 2: the history cannot be read.
#![allow(clippy::disallowed_methods, reason = "it reads the file that it is given")]

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    process::ExitCode,
};

use persona_audit::{Auditor, Report, history::Event};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: persona-audit FILE   (\"-\" reads the standard input)");
        return ExitCode::from(2);
    };
    let report = match audit(&file) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("error: {file}: {error}");
            return ExitCode::from(2);
        }
    };
    let mut out = io::stdout().lock();
    for finding in &report.findings {
        let line = serde_json::to_string(finding).expect("text and numbers");
        if writeln!(out, "{line}").is_err() {
            break; // nobody reads any more; the exit status still says it
        }
    }
    eprintln!("{} events, {} findings", report.events, report.findings.len());
    for (mark, count) in &report.marks {
        eprintln!("{count:>8} {mark}");
    }
    if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn audit(file: &str) -> io::Result<Report> {
    let input: Box<dyn io::BufRead> = if file == "-" { Box::new(io::stdin().lock()) } else { Box::new(BufReader::new(File::open(file)?)) };
    let mut auditor = Auditor::new(Box::new(persona_foreign::verifies));
    for (number, line) in (1..).zip(input.lines()) {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let event: Event = serde_json::from_str(&line).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("line {number} is no event of tests/audit/src/history.rs: {error}"))
        })?;
        auditor.observe(&event);
    }
    Ok(auditor.finish())
}
