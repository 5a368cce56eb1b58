//! Plots as SVG, written by hand: a few panels side by side, lines, and a legend. Nothing that a browser or a viewer of images cannot draw.

use std::fmt::Write as _;

/// A line in a panel.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its name in the legend; lines of one name have one look.
    pub name: String,
    /// Points: x, and a share from 0 to 1.
    pub points: Vec<(f64, f64)>,
}

/// One panel.
#[derive(Clone, Debug)]
pub struct Panel {
    /// Above it.
    pub title: String,
    /// Where x ends, and what stands there.
    pub x_max: f64,
    /// Ticks of x, with their words.
    pub x_ticks: Vec<(f64, String)>,
    /// The lines.
    pub lines: Vec<Line>,
}

/// How a line looks: colour, and the pattern of its dashes.
pub type Look = (&'static str, &'static str);

/// The lowest loss that can be told from none: the top of a panel.
const NINES_MAX: f64 = 7.0;

const PANEL_WIDTH: f64 = 330.0;
const PANEL_HEIGHT: f64 = 260.0;
const LEFT: f64 = 112.0;
const TOP: f64 = 64.0;
const GAP: f64 = 44.0;
const LEGEND_ROW: f64 = 20.0;

/// Panels side by side. The y axis counts nines: each step up is a tenth of the loss.
pub fn nines(title: &str, y_title: &str, panels: &[Panel], looks: &[(&str, Look)]) -> String {
    let columns = panels.len().max(1) as f64;
    let width = LEFT + columns * PANEL_WIDTH + (columns - 1.0) * GAP + 24.0;
    let rows = looks.len().div_ceil(2) as f64;
    let height = TOP + PANEL_HEIGHT + 66.0 + rows * LEGEND_ROW;
    let mut svg = String::new();
    let mut put = |text: String| {
        svg.push_str(&text);
        svg.push('\n');
    };
    put(format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0}" height="{height:.0}" viewBox="0 0 {width:.0} {height:.0}" font-family="sans-serif" font-size="12">"##
    ));
    put(r##"<rect width="100%" height="100%" fill="#ffffff"/>"##.to_owned());
    put(format!(r##"<text x="{LEFT}" y="26" font-size="16" font-weight="bold" fill="#222222">{}</text>"##, escape(title)));
    let middle = TOP + PANEL_HEIGHT / 2.0;
    put(format!(
        r##"<text x="20" y="{middle:.0}" fill="#222222" text-anchor="middle" transform="rotate(-90 20 {middle:.0})">{}</text>"##,
        escape(y_title)
    ));
    let y = |share: f64| {
        let nines = if share >= 1.0 { NINES_MAX } else { (-(1.0 - share).log10()).clamp(0.0, NINES_MAX) };
        TOP + PANEL_HEIGHT * (1.0 - nines / NINES_MAX)
    };
    for (column, panel) in panels.iter().enumerate() {
        let left = LEFT + column as f64 * (PANEL_WIDTH + GAP);
        let x = |at: f64| left + PANEL_WIDTH * at / panel.x_max;
        put(format!(r##"<text x="{left:.1}" y="{:.1}" font-weight="bold" fill="#222222">{}</text>"##, TOP - 10.0, escape(&panel.title)));
        for nines in 0..=NINES_MAX as u32 {
            let at = y(1.0 - 10f64.powi(-(nines as i32)));
            put(format!(r##"<line x1="{left:.1}" y1="{at:.1}" x2="{:.1}" y2="{at:.1}" stroke="#e0e0e0"/>"##, left + PANEL_WIDTH));
            if column == 0 {
                put(format!(
                    r##"<text x="{:.1}" y="{:.1}" text-anchor="end" fill="#444444">{}</text>"##,
                    left - 6.0,
                    at + 4.0,
                    percent(nines)
                ));
            }
        }
        for (at, words) in &panel.x_ticks {
            let at = x(*at);
            let bottom = TOP + PANEL_HEIGHT;
            put(format!(r##"<line x1="{at:.1}" y1="{TOP:.1}" x2="{at:.1}" y2="{bottom:.1}" stroke="#eeeeee"/>"##));
            put(format!(r##"<text x="{at:.1}" y="{:.1}" text-anchor="middle" fill="#444444">{}</text>"##, bottom + 18.0, escape(words)));
        }
        put(format!(
            r##"<rect x="{left:.1}" y="{TOP:.1}" width="{PANEL_WIDTH:.1}" height="{PANEL_HEIGHT:.1}" fill="none" stroke="#888888"/>"##
        ));
        for line in &panel.lines {
            let Some((_, (colour, dash))) = looks.iter().find(|(name, _)| *name == line.name) else { continue };
            let mut path = String::new();
            for (at, share) in line.points.iter().filter(|(at, _)| *at <= panel.x_max) {
                let _ = write!(path, "{:.1},{:.1} ", x(*at), y(*share));
            }
            put(format!(
                r##"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dash}"/>"##,
                path.trim_end()
            ));
        }
    }
    for (number, (name, (colour, dash))) in looks.iter().enumerate() {
        let left = LEFT + (number % 2) as f64 * (width - LEFT) / 2.0;
        let at = TOP + PANEL_HEIGHT + 52.0 + (number / 2) as f64 * LEGEND_ROW;
        put(format!(
            r##"<line x1="{left:.1}" y1="{at:.1}" x2="{:.1}" y2="{at:.1}" stroke="{colour}" stroke-width="2.4" stroke-dasharray="{dash}"/>"##,
            left + 36.0
        ));
        put(format!(r##"<text x="{:.1}" y="{:.1}" fill="#222222">{}</text>"##, left + 44.0, at + 4.0, escape(name)));
    }
    put("</svg>".to_owned());
    svg
}

fn percent(nines: u32) -> String {
    match nines {
        0 => "0 %".into(),
        1 => "90 %".into(),
        2 => "99 %".into(),
        more => format!("99.{} %", "9".repeat(more as usize - 2)),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
