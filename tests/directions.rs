//! Which module may name which: the house's directions, held by reading its sources.
//!
//! Test code (what stands behind `#[cfg(test)]`) may name anything; it is held to the rules of text only.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

/// What each module at the top of `src/` may name of the crate, itself apart.
const MAY_NAME: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("drain", &[]),
    ("clock", &["model"]),
    ("redis_link", &["drain"]),
    ("store", &["model"]),
    ("queue", &["drain", "model", "redis_link"]),
    ("fleet", &["model", "redis_link"]),
    ("engine", &["clock", "drain", "fleet", "model", "queue", "store"]),
    ("grpc", &["clock", "drain", "engine", "model", "store"]),
    ("config", &["engine", "model"]),
    ("probe", &["config", "start_error", "store"]),
    ("data_dir", &["config"]),
    ("telemetry", &["config"]),
    ("tls", &["config", "drain"]),
    ("start_error", &["config", "data_dir"]),
    ("token", &["config", "data_dir", "grpc", "model", "start_error"]),
    (
        "server",
        &[
            "clock",
            "config",
            "data_dir",
            "drain",
            "engine",
            "fleet",
            "grpc",
            "queue",
            "redis_link",
            "start_error",
            "store",
            "tls",
            "token",
        ],
    ),
    ("lib", &[]),
    ("main", &[]),
];
/// Adapters: only these modules name them, the composition root and what measures one by itself.
const ADAPTERS: &[&str] = &[
    "store::sqlite",
    "store::postgres",
    "store::memory",
    "queue::memory",
    "queue::redis",
    "fleet::memory",
    "fleet::redis",
];
const MAY_NAME_ADAPTERS: &[&str] = &["server", "probe"];
/// Crates that talk to a database or to a network, with those whose names start so.
const DRIVERS: &[&str] = &["rusqlite", "sqlx", "tonic", "axum", "prost", "hyper", "errand_proto", "errand_wire"];
/// The modules that know none of them.
const DRIVERLESS: &[&str] = &["model", "clock", "drain", "queue", "fleet", "engine"];
/// The folders whose sources follow the rules of text.
const SOURCES: &[&str] =
    &["src", "gateway/src", "cli/src", "clients/rust/src", "conformance/src", "proto/src", "wire/src"];
/// The drivers of SQL databases, each with the only folder that may name it.
const SQL_FOLDERS: &[(&str, &str)] = &[("rusqlite", "src/store/sqlite/"), ("sqlx", "src/store/postgres/")];
/// Where the crate redis may be named.
const REDIS_FOLDERS: &[&str] = &["src/redis_link/", "src/queue/redis/", "src/fleet/redis"];
const LINES_MAX: usize = 500;

/// One source file.
struct Source {
    /// From the workspace's root.
    path: String,
    text: String,
    /// The text without comments and test code, line by line as in the file.
    code: String,
    /// How many modules lie between the crate's root and what this file says.
    depth: usize,
}

impl Source {
    /// The module at the top of the crate that this file belongs to.
    fn top(&self) -> &str {
        let below = self.path.split_once("src/").map_or(self.path.as_str(), |(_, below)| below);
        let first = below.split('/').next().unwrap_or(below);
        first.strip_suffix(".rs").unwrap_or(first)
    }

    fn complain(&self, offset: usize, what: &str) -> String {
        let line = self.code[..offset].matches('\n').count() + 1;
        format!("{}:{line}: {what}", self.path)
    }

    /// Where `name` stands as a whole path segment that `::` follows, or as the start of a crate's name where `open`.
    fn names(&self, name: &str, open: bool) -> Vec<usize> {
        let bytes = self.code.as_bytes();
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let follows = |end: usize| {
            let rest = &self.code[end..];
            let rest = if open && rest.starts_with('_') {
                rest.trim_start_matches(|c: char| c == '_' || c.is_alphanumeric())
            } else {
                rest
            };
            rest.starts_with("::")
        };
        self.code
            .match_indices(name)
            .map(|(at, _)| at)
            .filter(|at| (*at == 0 || !is_word(bytes[at - 1])) && follows(at + name.len()))
            .collect()
    }

    /// Every path behind `crate::`, without it, and where it stands.
    fn crate_paths(&self) -> Vec<(usize, String)> {
        let mut paths = Vec::new();
        for at in self.names("crate", false) {
            expand(&self.code, at + "crate::".len(), "", &mut paths);
        }
        paths
    }
}

/// Reads one branch of a use tree (or a plain path) at `at`; returns where it ends.
fn expand(code: &str, mut at: usize, prefix: &str, paths: &mut Vec<(usize, String)>) -> usize {
    let start = at;
    let mut path = prefix.to_owned();
    loop {
        let rest = &code[at..];
        if rest.starts_with('{') {
            at += 1;
            loop {
                at += code[at..].len() - code[at..].trim_start_matches(|c: char| c.is_whitespace() || c == ',').len();
                if at >= code.len() || code[at..].starts_with('}') {
                    return (at + 1).min(code.len());
                }
                let end = expand(code, at, &path, paths);
                // What is between a branch and its comma is a renaming.
                at = end + code[end..].find([',', '}']).unwrap_or(code.len() - end);
            }
        }
        let word = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*')).unwrap_or(rest.len());
        path.push_str(&rest[..word]);
        at += word;
        if !code[at..].starts_with("::") {
            paths.push((start, path));
            return at;
        }
        path.push_str("::");
        at += 2;
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_under(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.unwrap_or_else(|error| panic!("{}: {error}", folder.display())).path();
        if path.is_dir() {
            files_under(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The folder in which a file's own submodules lie.
fn submodules(path: &Path) -> PathBuf {
    match path.file_name().and_then(|name| name.to_str()) {
        Some("mod.rs" | "lib.rs" | "main.rs") => path.with_file_name(""),
        _ => path.with_extension(""),
    }
}

/// The sources below a folder of the workspace, in order of path. Where `test` code is in a file of its own, the file's
/// `code` is empty.
fn sources(folder: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    files_under(&root().join(folder), &mut paths);
    paths.sort();
    let read = |path: &PathBuf| fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let texts: Vec<String> = paths.iter().map(read).collect();
    let mut of_tests = HashSet::new();
    for (path, text) in paths.iter().zip(&texts) {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for pair in lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]") {
            // Whatever its visibility.
            if let Some((_, name)) = pair[1].strip_suffix(';').and_then(|line| line.rsplit_once("mod ")) {
                of_tests.insert(submodules(path).join(name));
            }
        }
    }
    let is_test =
        |path: &Path| of_tests.iter().any(|module| path.starts_with(module) || path.with_extension("") == *module);
    let source = |(path, text): (&PathBuf, String)| {
        let name = path.strip_prefix(root()).unwrap_or(path).display().to_string();
        let below = submodules(path);
        let depth = below.strip_prefix(root().join(folder)).map_or(0, |below| below.components().count());
        let code = if is_test(path) { String::new() } else { code_of(&text) };
        Source { path: name, text, code, depth }
    };
    paths.iter().zip(texts).map(source).collect()
}

/// Blanks comments, and drops a test module and what comes after it.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let next = lines.get(number + 1).map_or("", |next| next.trim());
        if line.trim() == "#[cfg(test)]" && next.starts_with("mod ") && next.ends_with('{') {
            break;
        }
        let comment = if line.trim_start().starts_with("//") { Some(0) } else { line.find(" // ") };
        code.push_str(&line[..comment.unwrap_or(line.len())]);
        code.push('\n');
    }
    code
}

fn hold(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn imports_point_to_the_left() {
    let mut complaints = Vec::new();
    for source in sources("src") {
        let top = source.top();
        let Some((_, may)) = MAY_NAME.iter().find(|(name, _)| *name == top) else {
            complaints.push(format!("{}:1: the module {top} has no line in MAY_NAME", source.path));
            continue;
        };
        for (at, path) in source.crate_paths() {
            let named = path.split("::").next().unwrap_or(&path);
            if named != top && !may.contains(&named) {
                complaints.push(source.complain(at, &format!("{top} names crate::{path}")));
            }
            let is_adapter = |adapter: &&str| path == **adapter || path.starts_with(&format!("{adapter}::"));
            if !MAY_NAME_ADAPTERS.contains(&top) && top != named && ADAPTERS.iter().any(is_adapter) {
                complaints.push(source.complain(at, &format!("{top} names the adapter crate::{path}")));
            }
        }
        let climb = "super::".repeat(source.depth.max(1));
        for at in source.names("super", false) {
            if source.code[at..].starts_with(&climb) {
                complaints.push(source.complain(at, "climbs to the crate's root; say crate::"));
            }
        }
    }
    hold(&complaints);
}

#[test]
fn drivers_stay_in_their_adapters() {
    let mut complaints = Vec::new();
    for source in sources("src") {
        if DRIVERLESS.contains(&source.top()) {
            for driver in DRIVERS {
                for at in source.names(driver, true) {
                    complaints.push(source.complain(at, &format!("{} names {driver}", source.top())));
                }
            }
        } else {
            for (driver, folder) in SQL_FOLDERS.iter().filter(|(_, folder)| !source.path.starts_with(folder)) {
                for at in source.names(driver, false) {
                    complaints.push(source.complain(at, &format!("names {driver} outside {folder}")));
                }
            }
        }
        // A module of the house may bear the same name.
        let outside = !REDIS_FOLDERS.iter().any(|folder| source.path.starts_with(folder));
        let is_crate = |at: &usize| !source.code[..*at].ends_with("::");
        for at in source.names("redis", false).into_iter().filter(|at| outside && is_crate(at)) {
            complaints.push(source.complain(at, "names the crate redis"));
        }
    }
    hold(&complaints);
}

#[test]
fn the_model_reads_no_clock_and_waits_for_nothing() {
    let mut complaints = Vec::new();
    for source in sources("src/model") {
        for forbidden in ["SystemTime", "Instant", "tokio::", "async ", ".await", "std::fs", "std::env"] {
            for (at, _) in source.code.match_indices(forbidden) {
                complaints.push(source.complain(at, &format!("model names {forbidden}")));
            }
        }
    }
    hold(&complaints);
}

#[test]
fn only_the_program_names_the_service() {
    let mut complaints = Vec::new();
    for source in ["src", "gateway/src", "cli/src", "clients/rust/src", "conformance/src"].into_iter().flat_map(sources)
    {
        if source.path != "src/main.rs" {
            for at in source.names("errand", false) {
                complaints.push(source.complain(at, "names the crate errand"));
            }
        }
    }
    hold(&complaints);
}

#[test]
fn every_file_says_what_it_is() {
    let nameless = |source: &Source| !source.text.starts_with("//!");
    let complain = |source: Source| format!("{}:1: does not start with //!", source.path);
    let complaints: Vec<String> = SOURCES.iter().copied().flat_map(sources).filter(nameless).map(complain).collect();
    hold(&complaints);
}

#[test]
fn no_file_is_too_long_to_read() {
    let mut complaints = Vec::new();
    for source in SOURCES.iter().copied().flat_map(sources) {
        let lines = source.text.lines().count();
        if lines > LINES_MAX {
            complaints.push(format!("{}:{lines}: is over {LINES_MAX} lines", source.path));
        }
    }
    hold(&complaints);
}

#[test]
fn nothing_is_left_over_or_hushed() {
    let mut complaints = Vec::new();
    for source in SOURCES.iter().copied().flat_map(sources) {
        for (number, line) in source.text.lines().enumerate() {
            for forbidden in ["TODO", "#[allow(", "#![allow("] {
                if line.contains(forbidden) {
                    complaints.push(format!("{}:{}: has {forbidden}", source.path, number + 1));
                }
            }
        }
    }
    hold(&complaints);
}
