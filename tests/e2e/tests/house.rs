//! The house's outer walls: what may depend on what, and what the pure crates never do.
//!
//! `cargo` sees to most of it, as a crate that is not named in a manifest cannot be used, and clippy's list of disallowed methods to more.
//! What is left is checked here: that the manifests, the lists and the documents say what docs/ARCHITECTURE.md says. Every rule is a
//! function from text to complaints, and each is shown a culprit first.
#![allow(clippy::disallowed_methods, reason = "it reads the repository, and asks cargo and git")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Which of our crates each of our crates may name, for anything but its tests. Arrows run downward only.
const HOUSE: &[(&str, &[&str])] = &[
    ("persona-fragments", &[]),
    ("persona-bootstrap", &["persona-fragments"]),
    ("persona-mesh-proto", &["persona-fragments"]),
    ("persona-agent", &["persona-fragments"]),
    ("persona-core", &["persona-fragments", "persona-bootstrap", "persona-mesh-proto", "persona-agent"]),
    ("persona-mesh", &["persona-fragments", "persona-mesh-proto"]),
    // It measures the verifier as it is.
    ("persona-lab", &["persona-agent"]),
    // It judges nodes from outside; of the inside it may know how to check a certificate.
    ("persona-drill", &["persona-fragments"]),
    (
        "persona",
        &[
            "persona-fragments",
            "persona-bootstrap",
            "persona-mesh-proto",
            "persona-mesh",
            "persona-agent",
            "persona-core",
            "persona-drill",
            "persona-lab",
        ],
    ),
    // Written from docs/spec/wire.md alone: it would prove nothing if it knew us.
    ("persona-foreign", &[]),
    // Judges the protocol, so it must not be the protocol: formats it has from the stranger, rules from the documents.
    ("persona-audit", &["persona-foreign"]),
    // It runs the pure crates as they are, and is judged by one who knows none of them.
    ("persona-sim", &["persona-fragments", "persona-mesh-proto", "persona-agent", "persona-core", "persona-audit", "persona-lies"]),
    // It runs the machines of the protocol as they are; keys that cost a hash it has from the simulator.
    ("persona-model", &["persona-fragments", "persona-mesh-proto", "persona-sim"]),
    // It rewrites frames, and so knows the frames.
    ("persona-lies", &["persona-fragments", "persona-mesh-proto"]),
    // The soak sees nodes from outside alone; its other binary, the liar, is a node of ours but for its answers.
    ("persona-chaos", &["persona-drill", "persona-e2e", "persona", "persona-lies", "persona-fragments"]),
    // Whatever reads bytes, wherever it is.
    ("persona-fuzz", &["persona-fragments", "persona-bootstrap", "persona-mesh-proto", "persona-agent", "persona-core", "persona"]),
];

/// The crates that decide and never act, and where their code is.
const PURE: &[(&str, &str)] = &[
    ("persona-fragments", "fragments/src"),
    ("persona-bootstrap", "bootstrap/src"),
    ("persona-mesh-proto", "mesh/proto/src"),
    ("persona-agent", "node/agent/src"),
    ("persona-core", "node/core/src"),
    ("persona-lab", "node/lab/src"),
];

/// The one folder of a pure crate that touches the world.
const PURE_BUT: &str = "bootstrap/src/sources/";

/// What no pure crate may name as a dependency: runtimes, sockets, disks, the operating system's randomness.
const IMPURE_DIRECT: &[&str] = &["tokio", "futures", "libp2p", "getrandom", "redb", "reqwest", "axum", "rand", "parking_lot", "tempfile"];

/// What must not come with anything that a pure crate depends on, however far. (`getrandom` and `parking_lot` do, in the cache of
/// `reed-solomon-erasure`: they seed a hash table and lock it, and are never called by us.)
const IMPURE_TRANSITIVE: &[&str] = &["tokio", "futures-executor", "libp2p", "mio", "socket2", "redb", "reqwest", "axum", "rand"];

/// What the code of a pure crate may not say, outside its tests.
const IMPURE_WORDS: &[&str] = &[
    "async fn",
    "async move",
    "async {",
    ".await",
    "HashMap",
    "HashSet",
    "Instant::now",
    "SystemTime",
    "std::fs",
    "std::env",
    "std::thread",
    "std::process",
    "TcpStream",
    "UdpSocket",
    "OsRng",
    "thread_rng",
    "getrandom",
    "clippy::disallowed",
];

/// What names a function of bincode, or the means to. Types derive `Encode` and `Decode`, and that is all anybody else needs.
const BINCODE_WORDS: &[&str] = &[
    "bincode::config",
    "bincode::encode_",
    "bincode::decode_",
    "bincode::borrow_decode_",
    "bincode::serde",
    "use bincode::*",
    "use bincode;",
    "bincode as ",
];

/// What an import from bincode may name anywhere.
const BINCODE_TRAITS: &[&str] =
    &["Encode", "Decode", "BorrowDecode", "Encoder", "Decoder", "BorrowDecoder", "EncodeError", "DecodeError", "impl_borrow_decode"];

/// The only file that may say them.
const WIRE: &str = "fragments/src/wire.rs";

/// What may stand in the root, besides files that begin with a dot.
const ROOT: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "clippy.toml",
    "rustfmt.toml",
    "deny.toml",
    "rust-toolchain.toml",
    "README.md",
    "CHANGELOG.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "fragments",
    "bootstrap",
    "mesh",
    "node",
    "tests",
    "docs",
];

#[test]
fn arrows_run_downward() {
    expect_none(arrows(&members()));
}

#[test]
fn pure_crates_name_nothing_that_acts() {
    expect_none(impure_dependencies(&members()));
}

#[test]
fn nothing_that_acts_comes_with_what_pure_crates_name() {
    for (name, _) in PURE {
        let tree = cargo(&["tree", "--package", name, "--edges", "normal", "--prefix", "none", "--no-dedupe"]);
        expect_none(impure_tree(name, &tree));
    }
}

#[test]
fn pure_code_never_acts() {
    let mut files = 0;
    for (_, folder) in PURE {
        for file in rust_files(folder).into_iter().filter(|file| !file.starts_with(PURE_BUT)) {
            expect_none(impure_words(&file, &read(&file)));
            files += 1;
        }
    }
    assert!(files >= PURE.len(), "{files} files were looked at");
}

#[test]
fn only_the_wire_module_speaks_bincode() {
    let files = rust_files(".");
    assert!(files.contains(WIRE) && !bincode_words(WIRE, &read(WIRE)).is_empty(), "{WIRE} speaks it");
    for file in files.iter().filter(|file| *file != WIRE && *file != "tests/e2e/tests/house.rs") {
        expect_none(bincode_words(file, &read(file)));
    }
}

#[test]
fn every_dependency_has_its_reason() {
    expect_none(without_reason(&read("Cargo.toml")));
    for member in members() {
        expect_none(own_versions(&member.manifest, &read(&member.manifest)));
    }
}

#[test]
fn every_crate_takes_the_lints_of_the_house() {
    for member in members() {
        let manifest = read(&member.manifest);
        assert!(manifest.contains("[lints]\nworkspace = true"), "{}: say [lints] workspace = true", member.manifest);
    }
}

#[test]
fn the_root_is_tidy() {
    expect_none(untidy(&tracked_files()));
}

#[test]
fn every_page_that_is_cited_exists() {
    let pages: BTreeMap<String, String> =
        tracked_files().into_iter().filter(|file| file.ends_with(".md")).map(|file| (file.clone(), read(&file))).collect();
    let mut complaints = Vec::new();
    for file in tracked_files() {
        let cites = file.ends_with(".rs") || file.ends_with(".toml");
        if cites && file != "tests/e2e/tests/house.rs" {
            complaints.extend(dead_citations(&file, &read(&file), &pages));
        }
    }
    for (file, text) in &pages {
        complaints.extend(dead_citations(file, text, &pages));
        complaints.extend(dead_links(file, text, &pages, &|target| root().join(target).exists()));
    }
    expect_none(complaints);
}

/// Each rule, shown a culprit. A rule that finds nothing here would find nothing there.
mod culprits {
    use super::*;

    fn member(name: &str, normal: &[&str]) -> Member {
        let dependencies = normal.iter().map(|&dependency| dependency.to_owned()).collect();
        Member { name: name.into(), folder: "x".into(), manifest: "x/Cargo.toml".into(), dependencies, test_dependencies: BTreeSet::new() }
    }

    #[test]
    fn an_arrow_upward() {
        assert_eq!(arrows(&[member("persona-agent", &["persona-fragments", "serde"])]), [] as [String; 0]);
        assert_eq!(arrows(&[member("persona-fragments", &["persona-agent"])]).len(), 1);
        assert_eq!(arrows(&[member("persona-foreign", &["persona-fragments"])]).len(), 1);
        let mut in_tests_only = member("persona-mesh", &[]);
        in_tests_only.test_dependencies.insert("persona".into());
        assert_eq!(arrows(&[in_tests_only]).len(), 1);
        assert_eq!(arrows(&[member("persona-new", &[])]).len(), 1, "not in the table");
        let under_tests = Member { folder: "tests/sim".into(), ..member("persona-sim", &["persona-core"]) };
        assert_eq!(arrows(std::slice::from_ref(&under_tests)), [] as [String; 0]);
        assert_eq!(arrows(&[under_tests, member("persona-core", &["persona-sim"])]).len(), 1);
    }

    #[test]
    fn a_pure_crate_with_a_runtime() {
        assert_eq!(impure_dependencies(&[member("persona-mesh", &["tokio"])]), [] as [String; 0]);
        assert_eq!(impure_dependencies(&[member("persona-core", &["tokio", "serde"])]).len(), 1);
        assert_eq!(impure_dependencies(&[member("persona-agent", &["libp2p-kad"])]).len(), 1);
        assert_eq!(impure_tree("x", "a v1.0.0\nlibp2p-core v0.1.0\nrandom v1.0.0\n").len(), 1);
    }

    #[test]
    fn pure_code_that_acts() {
        for guilty in [
            "use std::collections::HashMap;",
            "    async fn run() {",
            "  x.await;",
            "let now = Instant::now(); // soon",
            "#![allow(clippy::disallowed_methods)]",
        ] {
            assert_eq!(impure_words("x.rs", guilty).len(), 1, "{guilty}");
        }
        for innocent in [
            "/// Never a HashMap.",
            "fn f() {} // not an async fn",
            "let a = 1;\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}",
            "#![cfg_attr(test, allow(clippy::disallowed_methods))]",
        ] {
            assert_eq!(impure_words("x.rs", innocent), [] as [String; 0], "{innocent}");
        }
        // Not everything after an attribute for tests is a test.
        assert_eq!(impure_words("x.rs", "#[cfg(test)]\nuse a::b;\nuse std::fs;").len(), 1);
    }

    #[test]
    fn a_second_codec() {
        assert_eq!(bincode_words("x.rs", "use bincode::{Decode, Encode};\nimpl bincode::Encode for X {}"), [] as [String; 0]);
        assert_eq!(bincode_words("x.rs", "let bytes = bincode::encode_to_vec(x, bincode::config::standard());").len(), 2);
        assert_eq!(bincode_words("x.rs", "use bincode::{Decode, de::Decoder, error::DecodeError};"), [] as [String; 0]);
        assert_eq!(bincode_words("x.rs", "use bincode::{config, Encode};").len(), 1);
        assert_eq!(bincode_words("x.rs", "use bincode::{\n    Encode,\n    decode_from_slice,\n};").len(), 1);
    }

    #[test]
    fn a_dependency_without_reason() {
        let manifest = "[workspace.dependencies]\npersona = { path = \"node\" }\na = \"1\" # it is needed\nb = \"1\"\nc = { version = \"1\" } #\n[profile.dev]\nd = 1\n";
        assert_eq!(without_reason(manifest).len(), 2);
        assert_eq!(own_versions("x", "[dependencies]\na.workspace = true\n[dev-dependencies]\nb = \"1\"\n[lib]\nname = \"x\"\n").len(), 1);
        assert_eq!(own_versions("x", "[dependencies]\nc = { workspace = true, features = [\"x\"] }\n"), [] as [String; 0]);
    }

    #[test]
    fn an_untidy_root() {
        let files = [".gitignore", ".ci/run", "docs/a.md", "Cargo.toml", "notes.txt", "scripts/x.sh"].map(str::to_owned);
        assert_eq!(untidy(&files).len(), 2);
    }

    #[test]
    fn a_citation_of_nothing() {
        let pages = BTreeMap::from([(
            "docs/spec/a.md".to_owned(),
            "# Title\n\n```\n# not a heading\n```\n## What `is` stored, and why?\n## Twice\n## Twice\n".to_owned(),
        )]);
        let cited = |text: &str| dead_citations("x.rs", text, &pages).len();
        assert_eq!(cited("docs/spec/a.md docs/spec/a.md#title (docs/spec/a.md#what-is-stored-and-why). docs/spec/a.md#twice-1"), 0);
        assert_eq!(cited("docs/spec/b.md"), 1);
        assert_eq!(cited("docs/spec/a.md#not-a-heading"), 1);
        assert_eq!(cited("docs/spec/a.md#twice-2 and docs/spec/a.md#titel"), 2);
        let linked = |text: &str| dead_links("docs/x.md", text, &pages, &|target| target == "Cargo.toml").len();
        assert_eq!(linked("[a](spec/a.md#title) [b](https://example.org) [c](../Cargo.toml) `[d](e)`\n```\n[f](g)\n```"), 0);
        assert_eq!(linked("[a](a.md) [b](spec/a.md#nothing) [c](../none)"), 3);
        assert_eq!(dead_links("docs/spec/a.md", "# Here\n[x](#here) [y](#there)", &pages, &|_| false).len(), 1);
    }
}

struct Member {
    name: String,
    /// Relative to the root.
    folder: String,
    manifest: String,
    /// Everything but what only tests need.
    dependencies: BTreeSet<String>,
    test_dependencies: BTreeSet<String>,
}

fn arrows(members: &[Member]) -> Vec<String> {
    let mut complaints = Vec::new();
    let ours: BTreeSet<&str> = HOUSE.iter().map(|(name, _)| *name).chain(members.iter().map(|member| member.name.as_str())).collect();
    for member in members {
        let allowed = HOUSE.iter().find(|(name, _)| *name == member.name).map(|(_, allowed)| *allowed);
        if allowed.is_none() && member.folder.starts_with("tests/") {
            continue; // tests may use everything, and nothing but tests may use them: they are in nobody's list
        }
        let Some(allowed) = allowed else {
            complaints.push(format!("{} is not in the table of tests/e2e/tests/house.rs: give it a place in the house", member.name));
            continue;
        };
        for dependency in member.dependencies.union(&member.test_dependencies).filter(|dependency| ours.contains(dependency.as_str())) {
            if !allowed.contains(&dependency.as_str()) {
                complaints.push(format!("{} depends on {dependency}: arrows run downward only (docs/ARCHITECTURE.md)", member.name));
            }
        }
    }
    complaints
}

fn impure_dependencies(members: &[Member]) -> Vec<String> {
    let pure = members.iter().filter(|member| PURE.iter().any(|(name, _)| *name == member.name));
    let named = pure.flat_map(|member| member.dependencies.iter().map(move |dependency| (member, dependency)));
    named
        .filter(|(_, dependency)| IMPURE_DIRECT.iter().any(|impure| is_of_family(dependency, impure)))
        .map(|(member, dependency)| format!("{} is pure, but depends on {dependency}: hand it in as an argument", member.name))
        .collect()
}

fn impure_tree(name: &str, tree: &str) -> Vec<String> {
    let found: BTreeSet<&str> = tree
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|dependency| IMPURE_TRANSITIVE.iter().any(|impure| is_of_family(dependency, impure)))
        .collect();
    found
        .into_iter()
        .map(|dependency| format!("{name} is pure, but {dependency} comes with it: see cargo tree -p {name} -i {dependency}"))
        .collect()
}

/// `libp2p-kad` is of the family `libp2p`; `random` is not of the family `rand`.
fn is_of_family(dependency: &str, family: &str) -> bool {
    dependency.strip_prefix(family).is_some_and(|rest| rest.is_empty() || (family == "libp2p" && rest.starts_with('-')))
}

fn impure_words(file: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        // Tests come last in a file, in a module of their own.
        let attribute = line.trim() == "#[cfg(test)]";
        if attribute
            && lines[index + 1..].iter().find(|next| !next.trim().starts_with("#[")).is_some_and(|next| next.trim().starts_with("mod "))
        {
            break;
        }
        let code = line.split("//").next().unwrap_or_default();
        for word in IMPURE_WORDS.iter().filter(|word| code.contains(**word)) {
            if *word == "clippy::disallowed" && code.contains("cfg_attr(test") {
                continue;
            }
            complaints.push(format!("{file}:{}: pure code says {word:?}", index + 1));
        }
    }
    complaints
}

fn bincode_words(file: &str, text: &str) -> Vec<String> {
    let code: String = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let mut complaints: Vec<String> =
        BINCODE_WORDS.iter().filter(|word| code.contains(**word)).map(|word| format!("{file} says {word:?}: only {WIRE} does")).collect();
    // A list of imports may hold the traits, and what writing one by hand takes; nothing that starts an encoding or a decoding.
    for list in code.split("bincode::{").skip(1) {
        let names = list.split('}').next().unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty());
        let foreign = names.filter(|name| !BINCODE_TRAITS.contains(&name.rsplit("::").next().unwrap_or_default()));
        complaints.extend(foreign.map(|name| format!("{file} imports bincode::{name}: only {WIRE} may")));
    }
    complaints
}

fn without_reason(root_manifest: &str) -> Vec<String> {
    section_lines(root_manifest, |section| section == "workspace.dependencies")
        .filter(|line| !line.contains("path = "))
        .filter(|line| line.split_once(" # ").is_none_or(|(_, reason)| reason.trim().len() < 4))
        .map(|line| format!("Cargo.toml: say at the end of this line why we depend on it: {line}"))
        .collect()
}

fn own_versions(manifest: &str, text: &str) -> Vec<String> {
    section_lines(text, |section| section.ends_with("dependencies"))
        .filter(|line| !line.contains("workspace = true"))
        .map(|line| format!("{manifest}: versions stand in the root Cargo.toml, with their reason: {line}"))
        .collect()
}

/// The lines of a manifest's sections, without comments and blank lines.
fn section_lines<'a>(manifest: &'a str, wanted: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = &'a str> + 'a {
    let mut inside = false;
    manifest.lines().filter(move |line| {
        if let Some(section) = line.strip_prefix('[') {
            inside = wanted(section.trim_end_matches(']'));
            return false;
        }
        inside && !line.trim().is_empty() && !line.trim().starts_with('#')
    })
}

fn untidy(files: &[String]) -> Vec<String> {
    let top: BTreeSet<&str> = files.iter().filter_map(|file| file.split('/').next()).collect();
    top.into_iter()
        .filter(|name| !name.starts_with('.') && !ROOT.contains(name))
        .map(|name| format!("{name} does not belong in the root: find it a place inside, or name it in tests/e2e/tests/house.rs"))
        .collect()
}

/// `docs/....md` and `docs/....md#heading` in `text` that lead nowhere.
fn dead_citations(file: &str, text: &str, pages: &BTreeMap<String, String>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (start, _) in text.match_indices("docs/") {
        let path_letter = |letter: char| letter.is_ascii_alphanumeric() || "/._-".contains(letter);
        let rest = &text[start..];
        let end = rest.find(|letter| !path_letter(letter)).unwrap_or(rest.len());
        let Some(length) = rest[..end].rfind(".md").map(|dot| dot + ".md".len()) else { continue };
        let (page, rest) = rest.split_at(length);
        let anchor = rest.strip_prefix('#').map(|rest| {
            let end = rest.find(|letter: char| !(letter.is_alphanumeric() || "-_".contains(letter))).unwrap_or(rest.len());
            &rest[..end]
        });
        let before = text[..start].chars().next_back();
        if before.is_some_and(|letter| path_letter(letter) && letter != '.') {
            continue; // the end of a longer path, or of an address
        }
        complaints.extend(dead(file, page, anchor, pages));
    }
    complaints
}

/// `[text](target)` in a page that leads to nothing in the repository. Addresses on the web are not followed.
fn dead_links(file: &str, text: &str, pages: &BTreeMap<String, String>, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut complaints = Vec::new();
    for line in prose(text) {
        let line: String = line.split('`').step_by(2).collect(); // without `code`
        for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
            let page = if path.is_empty() { file.to_owned() } else { joined(file, path) };
            if page == file && !pages.contains_key(file) {
                continue;
            }
            let own = BTreeMap::from([(file.to_owned(), text.to_owned())]);
            if page == file {
                complaints.extend(dead(file, &page, anchor, &own));
            } else if page.ends_with(".md") {
                complaints.extend(dead(file, &page, anchor, pages));
            } else if !exists(&page) {
                complaints.push(format!("{file} links to {page}, which does not exist"));
            }
        }
    }
    complaints
}

fn dead(file: &str, page: &str, anchor: Option<&str>, pages: &BTreeMap<String, String>) -> Option<String> {
    let Some(text) = pages.get(page) else { return Some(format!("{file} cites {page}, which does not exist")) };
    let anchor = anchor.filter(|anchor| !anchor.is_empty())?;
    let headings = anchors(text);
    (!headings.contains(anchor)).then(|| format!("{file} cites {page}#{anchor}, but its headings are {headings:?}"))
}

/// A relative link's target, from the root.
fn joined(file: &str, link: &str) -> String {
    let mut parts: Vec<&str> = file.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

/// The anchors of a page's headings, made as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for line in prose(text) {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = title.trim().chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
        let slug: String = kept.map(|letter| if letter == ' ' { '-' } else { letter.to_ascii_lowercase() }).collect();
        let mut anchor = slug.clone();
        for number in 1.. {
            if anchors.insert(anchor.clone()) {
                break;
            }
            anchor = format!("{slug}-{number}");
        }
    }
    anchors
}

/// A page's lines without its blocks of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

fn expect_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("tests/e2e is two folders below the root").to_owned()
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn cargo(arguments: &[&str]) -> String {
    output(Command::new(env!("CARGO")).args(arguments).arg("--offline"))
}

fn output(command: &mut Command) -> String {
    let output = command.current_dir(root()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn members() -> Vec<Member> {
    let metadata: serde_json::Value =
        serde_json::from_str(&cargo(&["metadata", "--format-version", "1", "--no-deps"])).expect("cargo writes JSON");
    let root = root();
    let relative = |path: &str| Path::new(path).strip_prefix(&root).expect("members are inside").to_str().expect("text").to_owned();
    let member = |package: &serde_json::Value| {
        let named = |tests: bool| {
            let dependencies = package["dependencies"].as_array().expect("a list").iter();
            let wanted = dependencies.filter(|dependency| (dependency["kind"] == "dev") == tests);
            wanted.map(|dependency| dependency["name"].as_str().expect("text").to_owned()).collect()
        };
        let manifest = relative(package["manifest_path"].as_str().expect("text"));
        let folder = manifest.strip_suffix("/Cargo.toml").unwrap_or_default().to_owned();
        let name = package["name"].as_str().expect("text").to_owned();
        Member { name, folder, manifest, dependencies: named(false), test_dependencies: named(true) }
    };
    let members: Vec<Member> = metadata["packages"].as_array().expect("a list").iter().map(member).collect();
    assert!(members.len() >= HOUSE.len() - 1, "the house has more rooms than these {}", members.len());
    members
}

/// Every file of the repository, relative to the root: what git knows and does not ignore, or what lies there where there is no git.
fn tracked_files() -> Vec<String> {
    let git = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .ok()
        .filter(|output| output.status.success());
    let mut files: Vec<String> = match git {
        Some(output) => String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect(),
        None => files_under(&root()).into_iter().collect(),
    };
    files.retain(|file| root().join(file).is_file());
    assert!(files.iter().any(|file| file == "Cargo.toml"), "the root is in {}", root().display());
    files
}

fn rust_files(folder: &str) -> BTreeSet<String> {
    let inside = |file: &String| file.ends_with(".rs") && (folder == "." || file.starts_with(&format!("{folder}/")));
    let files: BTreeSet<String> = tracked_files().into_iter().filter(inside).collect();
    assert!(!files.is_empty(), "{folder} has no code");
    files
}

fn files_under(folder: &Path) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && name != "target" && name != ".git" {
            files.extend(files_under(&path));
        } else if path.is_file() {
            files.extend(path.strip_prefix(root()).ok().and_then(|path| path.to_str()).map(str::to_owned));
        }
    }
    files
}
