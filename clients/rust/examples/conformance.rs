//! The runner under test of `errand conformance`: the functions of docs/writing-a-client.md, each as short as it goes.

use std::{
    collections::HashMap,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use errand_client::{Execution, Failure, LogKind, Runner, Servers};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::sleep;

/// The exit code that the page asks of `crash`.
const CRASH_CODE: i32 = 70;

#[derive(Deserialize)]
struct Span {
    seconds: f64,
}

impl Span {
    fn of(job: &Execution) -> Result<Duration, Failure> {
        let Self { seconds } = job.payload()?;
        Ok(Duration::try_from_secs_f64(seconds)?)
    }
}

#[derive(Deserialize)]
struct Message {
    message: String,
}

#[derive(Deserialize)]
struct Text {
    text: String,
}

#[derive(Deserialize)]
struct Steps {
    steps: u32,
    pause: f64,
}

#[derive(Deserialize)]
struct Lines {
    lines: Vec<Line>,
}

#[derive(Deserialize)]
struct Line {
    kind: String,
    message: String,
    meta: Value,
}

/// Calls of `concurrency` at the moment, and the most there ever were.
#[derive(Default)]
struct Gauge {
    running: AtomicUsize,
    peak: AtomicUsize,
}

#[tokio::main]
async fn main() -> ExitCode {
    // Why it has no connection is a warning, and the kit wants to read it.
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let mut runner = Runner::new(Servers::from_env());
    for channel in variable("ERRAND_CHANNELS").split(',').filter(|channel| !channel.is_empty()) {
        runner = runner.channel(channel);
    }
    let runner = runner.capacity(variable("ERRAND_CAPACITY").parse().unwrap_or(1));
    match reporting(failing(plain(runner))).run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Those that only return something.
fn plain(runner: Runner) -> Runner {
    let starts: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let gauge: Arc<Gauge> = Arc::default();
    runner
        .function("echo", |job| async move { job.raw_payload() })
        .function("many", |job| async move { job.raw_payload() })
        .function("no_result", |_| async { Ok(()) })
        .function("describe", describe)
        .function("sleep", |job| async move {
            sleep(Span::of(&job)?).await;
            Ok(json!({"slept": job.payload::<Span>()?.seconds}))
        })
        .function("busy", |job| async move {
            let until = Instant::now() + Span::of(&job)?;
            // Gives way to nobody, on purpose.
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            Ok(json!({"busy": job.payload::<Span>()?.seconds}))
        })
        .function("big_result", |job| async move {
            let bytes = job.payload::<Value>()?["bytes"].as_u64().unwrap_or(0);
            Ok(json!({"text": "x".repeat(usize::try_from(bytes)?)}))
        })
        .function("starts", move |job| {
            let starts = Arc::clone(&starts);
            async move {
                let count = {
                    let mut starts = starts.lock().unwrap_or_else(PoisonError::into_inner);
                    let count = starts.entry(job.job_id().to_owned()).or_default();
                    *count += 1;
                    *count
                };
                sleep(Span::of(&job)?).await;
                Ok(json!({"starts": count}))
            }
        })
        .function("concurrency", move |job| {
            let gauge = Arc::clone(&gauge);
            async move {
                let running = gauge.running.fetch_add(1, Ordering::SeqCst) + 1;
                gauge.peak.fetch_max(running, Ordering::SeqCst);
                sleep(Span::of(&job)?).await;
                gauge.running.fetch_sub(1, Ordering::SeqCst);
                Ok(json!({"peak": gauge.peak.load(Ordering::SeqCst)}))
            }
        })
}

/// Those that fail, or worse.
fn failing(runner: Runner) -> Runner {
    runner
        .function("fail", |job| async move { Err::<(), _>(Failure::new(job.payload::<Message>()?.message)) })
        .function(
            "fail_for_good",
            |job| async move { Err::<(), _>(Failure::for_good(job.payload::<Message>()?.message)) },
        )
        .function("retry_after", |job| async move {
            if job.attempt() == 1 {
                return Err(Failure::new("not yet").retry_after(Span::of(&job)?));
            }
            Ok(json!({"attempt": job.attempt()}))
        })
        .function("crash", |job| async move {
            let attempts = job.payload::<Value>()?["attempts"].as_u64().unwrap_or(0);
            if u64::from(job.attempt()) <= attempts {
                std::process::exit(CRASH_CODE);
            }
            Ok(json!({"attempt": job.attempt()}))
        })
        .function("wait_for_cancel", |job| async move {
            tokio::select! {
                () = job.canceled() => {}
                () = sleep(Span::of(&job)?) => {}
            }
            Ok(json!({"waited": job.payload::<Span>()?.seconds}))
        })
}

/// Those that say something while they run.
fn reporting(runner: Runner) -> Runner {
    runner
        .function("progress", |job| async move {
            let Steps { steps, pause } = job.payload()?;
            for step in 1..=steps {
                job.set_metadata(json!({"step": step, "of": steps}))?;
                sleep(Duration::try_from_secs_f64(pause)?).await;
            }
            Ok(json!({"steps": steps}))
        })
        .function("log", |job| async move {
            let Lines { lines } = job.payload()?;
            let count = lines.len();
            for Line { kind, message, meta } in lines {
                job.add_log(message, log_kind(&kind)?, meta);
            }
            Ok(json!({"lines": count}))
        })
        .function("unicode", |job| async move {
            let Text { text } = job.payload()?;
            job.add_log(text.clone(), LogKind::Info, None);
            job.set_metadata(json!({"text": text}))?;
            Ok(json!({"text": text, "code_points": text.chars().count()}))
        })
}

async fn describe(job: Execution) -> Result<Value, Failure> {
    let left = job.deadline().map(|deadline| deadline.saturating_duration_since(tokio::time::Instant::now()));
    Ok(json!({
        "job_id": job.job_id(),
        "func": job.func(),
        "channel": job.channel(),
        "attempt": job.attempt(),
        "max_retries": job.max_retries(),
        "traceparent": job.traceparent(),
        "deadline_ms": left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
    }))
}

fn log_kind(name: &str) -> Result<LogKind, Failure> {
    match name {
        "debug" => Ok(LogKind::Debug),
        "info" => Ok(LogKind::Info),
        "warn" => Ok(LogKind::Warn),
        "error" => Ok(LogKind::Error),
        _ => Err(Failure::for_good(format!("there is no log kind {name:?}"))),
    }
}
