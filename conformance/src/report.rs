//! What is printed: a line a scenario as it ends, and a sum; or one JSON document.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use serde_json::{Value, json};

use crate::scenario::Scenario;

/// Letters of a flaw that are shown.
const WHY_MAX: usize = 600;

/// One scenario that was played.
#[derive(Debug)]
pub struct Played {
    pub scenario: Scenario,
    pub flaw: Option<String>,
    pub duration: Duration,
    /// The ends of the logs, where there is a flaw.
    pub logs: Vec<(&'static str, Vec<String>)>,
}

/// All of them, in order.
#[derive(Debug)]
pub struct Report {
    is_json: bool,
    count: usize,
    played: Vec<Played>,
}

impl Report {
    pub fn new(is_json: bool, count: usize) -> Self {
        Self { is_json, count, played: Vec::with_capacity(count) }
    }

    pub fn add(&mut self, played: Played) {
        if !self.is_json {
            print(&line(&played, self.played.len() + 1, self.count));
        }
        self.played.push(played);
    }

    /// The sum, and the exit code.
    pub fn end(self) -> ExitCode {
        let failed = self.played.iter().filter(|played| played.flaw.is_some()).count();
        let passed = self.played.len() - failed;
        if self.is_json {
            let scenarios: Vec<Value> = self.played.iter().map(document).collect();
            print(&format!("{:#}", json!({"passed": passed, "failed": failed, "scenarios": scenarios})));
        } else {
            print(&format!("{passed} passed, {failed} failed"));
        }
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn line(played: &Played, number: usize, count: usize) -> String {
    let Played { scenario, flaw, duration, logs } = played;
    let verdict = if flaw.is_none() { "pass" } else { "FAIL" };
    let mut text = format!("{verdict}  {number:>3}/{count}  {}  ({:.1} s)", scenario.name, duration.as_secs_f64());
    if let Some(flaw) = flaw.as_deref().map(cut) {
        text += &format!("\n      wanted: {}\n      but: {flaw}", scenario.claim);
    }
    for (name, lines) in logs {
        text += &format!("\n      the {name} said at last:");
        for line in lines {
            text += &format!("\n        | {}", plain(&cut(line)));
        }
    }
    text
}

fn document(played: &Played) -> Value {
    json!({
        "name": played.scenario.name,
        "claim": played.scenario.claim,
        "passed": played.flaw.is_none(),
        "why": played.flaw.as_deref().map(cut),
        "duration_ms": u64::try_from(played.duration.as_millis()).unwrap_or(u64::MAX),
    })
}

fn cut(flaw: &str) -> String {
    let mut text: String = flaw.chars().take(WHY_MAX).collect();
    if text.len() < flaw.len() {
        text += "...";
    }
    text
}

/// Every scenario with its claim.
pub fn list(scenarios: &[Scenario], is_json: bool) -> ExitCode {
    if is_json {
        let all = scenarios.iter().map(|scenario| json!({"name": scenario.name, "claim": scenario.claim}));
        print(&format!("{:#}", Value::from_iter(all)));
    } else {
        for scenario in scenarios {
            print(&format!("{}\n    {}", scenario.name, scenario.claim));
        }
    }
    ExitCode::SUCCESS
}

/// Why nothing was played.
pub fn complain(sentence: &str, code: u8) -> ExitCode {
    // Where even standard error is closed there is nobody left to tell.
    let _ = writeln!(io::stderr(), "errand: {sentence}");
    ExitCode::from(code)
}

fn print(text: &str) {
    let mut stdout = io::stdout().lock();
    // A reader that went away, like `head`, is no failure.
    let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}

/// Without what would move a terminal's cursor.
fn plain(line: &str) -> String {
    line.chars().filter(|letter| !letter.is_control()).collect()
}
