//! The promises of the state machine, over random inputs, and its whole table as a snapshot.

use proptest::prelude::*;

use super::*;
use crate::model::{
    JobSpec, Start,
    spec::{BACKOFF_BASE_DEFAULT, BACKOFF_MAX_DEFAULT},
};

const NOW: Timestamp = Timestamp(1_700_000_000_000_000);

fn spec() -> JobSpec {
    JobSpec {
        func: "app.run".into(),
        channel: "default".into(),
        max_retries: 2,
        backoff_base: BACKOFF_BASE_DEFAULT,
        backoff_max_seconds: BACKOFF_MAX_DEFAULT,
        max_exec_seconds: Some(10),
        fingerprint: [0; 16],
        ..JobSpec::sample()
    }
}

fn id(number: u128) -> JobId {
    JobId(uuid::Uuid::from_u128(number))
}

fn new_job(spec: JobSpec) -> Job {
    Arc::unwrap_or_clone(create(id(1), spec, "ann".into(), NOW).expect("the spec is fine").job)
}

fn after(job: &Job, input: Input, now: Timestamp) -> Job {
    Arc::unwrap_or_clone(step(job, input, now, 0).expect("the input fits").job)
}

fn claim() -> Input {
    Input::Claim { runner_id: "r1".into() }
}

fn fail(attempt: u32) -> Input {
    Input::Fail { attempt, failure: Failure { error: "boom".into(), ..Failure::default() }, metadata: None }
}

/// One job of every kind there is to be in.
fn kinds() -> Vec<(&'static str, Job)> {
    let pending = new_job(spec());
    let running = after(&pending, claim(), NOW);
    let canceling = after(&running, Input::Cancel, NOW);
    let last = after(&new_job(JobSpec { max_retries: 0, ..spec() }), claim(), NOW);
    let broadcast = new_job(JobSpec { broadcast: true, ..spec() });
    let fanned = after(&broadcast, Input::Fanout { parts: 2 }, NOW);
    let complete = Input::Complete { attempt: 1, result: "1".into(), metadata: None };
    vec![
        ("pending", pending.clone()),
        ("delayed", new_job(JobSpec { start: Start::In(60), ..spec() })),
        ("running", running.clone()),
        ("running, cancel requested", canceling),
        ("running, no retries left", last.clone()),
        ("broadcast pending", broadcast),
        ("broadcast running", fanned),
        ("completed", after(&running, complete, NOW)),
        ("failed", after(&last, fail(1), NOW)),
        ("canceled", after(&pending, Input::Cancel, NOW)),
        ("expired", after(&pending, Input::Expire, NOW.plus_seconds(900))),
    ]
}

fn inputs() -> Vec<(&'static str, Input)> {
    let done = Parts { total: 2, completed: 2, ..Parts::default() };
    let broken = Parts { total: 2, completed: 1, failed: 1, ..Parts::default() };
    let permanent = Failure { error: "no".into(), permanent: true, ..Failure::default() };
    vec![
        ("claim", claim()),
        ("complete", Input::Complete { attempt: 1, result: String::new(), metadata: None }),
        ("complete, stale", Input::Complete { attempt: 7, result: String::new(), metadata: None }),
        ("fail", fail(1)),
        ("fail for good", Input::Fail { attempt: 1, failure: permanent, metadata: None }),
        ("release", Input::Release { attempt: 1 }),
        ("lose lease", Input::LoseLease { attempt: 1 }),
        ("overrun, too early", Input::Overrun { attempt: 1 }),
        ("cancel", Input::Cancel),
        ("force cancel", Input::ForceCancel),
        ("canceled", Input::Canceled { attempt: 1, metadata: None }),
        ("progress", Input::Progress { attempt: 1, metadata: "{}".into() }),
        ("expire, too early", Input::Expire),
        ("fan out", Input::Fanout { parts: 2 }),
        ("settle, all well", Input::Settle { parts: done }),
        ("settle, one failed", Input::Settle { parts: broken }),
        ("retried", Input::Retried { new_id: id(2) }),
    ]
}

#[test]
fn the_whole_table() {
    let mut table = String::new();
    for (kind, job) in kinds() {
        for (name, input) in inputs() {
            let outcome = match step(&job, input, NOW, 0) {
                Ok(Step { job, event, hint, .. }) => {
                    let event = event.map_or("no event".to_owned(), |event| format!("{:?}", event.kind));
                    format!("{}, {event}, {hint:?}", job.status.name())
                }
                Err(refusal) => format!("refused: {refusal}"),
            };
            table.push_str(&format!("{kind:26} x {name:19} -> {outcome}\n"));
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn an_expiry_at_the_run_time_is_refused() {
    let at = NOW.plus_seconds(60);
    let refused = create(id(1), JobSpec { start: Start::At(at), expiry: Expiry::At(at), ..spec() }, "ann".into(), NOW);
    assert_eq!(refused.expect_err("too early").field, "expires_at");
}

#[test]
fn a_refused_job_has_failed_and_is_never_offered() {
    // Not even an expiry that no job may have keeps it from telling why it was refused.
    let spec = JobSpec { expiry: Expiry::At(Timestamp(0)), idempotency_key: Some("k".into()), ..spec() };
    let [made, ended] = create_refused(id(1), spec, "ann".into(), NOW, "no such luck".into());
    assert_eq!((made.expected, made.hint), (None, Hint::None));
    assert_eq!((ended.expected, ended.hint), (Some(made.job.version), Hint::Forget));
    let job = &ended.job;
    assert_eq!((job.id, job.status, job.attempt), (id(1), Status::Failed, 0));
    assert_eq!((job.last_error.as_str(), job.idempotency_key.as_deref()), ("no such luck", None));
    assert_eq!(ended.event.as_ref().map(|event| event.details.as_str()), Some(r#"{"error":"no such luck"}"#));
}

#[test]
fn the_default_expiry_starts_anew_with_a_retry_and_a_given_one_does_not() {
    let late = NOW.plus_seconds(800);
    let job = after(&after(&new_job(spec()), claim(), late), fail(1), late);
    assert_eq!(job.expires_at, job.ready_at.plus_seconds(900));

    let given = new_job(JobSpec { expiry: Expiry::In(801), ..spec() });
    let failed = after(&after(&given, claim(), late), fail(1), late);
    assert_eq!((failed.status, failed.last_error.as_str()), (Status::Failed, "boom"));
}

#[test]
fn a_lost_runner_costs_an_attempt_and_no_wait() {
    let running = after(&new_job(spec()), claim(), NOW);
    let again = after(&running, Input::LoseLease { attempt: 1 }, NOW.plus_seconds(1));
    assert_eq!((again.status, again.ready_at), (Status::Pending, NOW.plus_seconds(1)));
    assert_eq!(again.executions(), 1);
}

#[test]
fn a_time_limit_fails_the_attempt_only_when_it_is_over() {
    let running = after(&new_job(spec()), claim(), NOW);
    let overrun = Input::Overrun { attempt: 1 };
    assert_eq!(step(&running, overrun.clone(), NOW.plus_seconds(9), 0), Err(Refusal::WithinLimit));
    let failed = after(&running, overrun, NOW.plus_seconds(10));
    assert_eq!(failed.last_error, "exceeded max_exec_seconds of 10 s");
}

fn any_input() -> impl Strategy<Value = Input> {
    let attempt = 0u32..8;
    prop_oneof![
        4 => Just(claim()),
        2 => attempt.clone().prop_map(|attempt| Input::Complete { attempt, result: String::new(), metadata: None }),
        4 => attempt.clone().prop_map(fail),
        3 => attempt.clone().prop_map(|attempt| Input::Release { attempt }),
        3 => attempt.clone().prop_map(|attempt| Input::LoseLease { attempt }),
        2 => attempt.clone().prop_map(|attempt| Input::Overrun { attempt }),
        1 => Just(Input::Cancel),
        1 => Just(Input::ForceCancel),
        1 => attempt.clone().prop_map(|attempt| Input::Canceled { attempt, metadata: None }),
        2 => attempt.prop_map(|attempt| Input::Progress { attempt, metadata: "{}".into() }),
        1 => Just(Input::Expire),
        1 => Just(Input::Fanout { parts: 1 }),
        1 => Just(Input::Settle { parts: Parts { total: 1, completed: 1, ..Parts::default() } }),
        1 => Just(Input::Retried { new_id: id(9) }),
    ]
}

fn attempt_of(input: &Input) -> Option<u32> {
    match input {
        Input::Complete { attempt, .. }
        | Input::Fail { attempt, .. }
        | Input::Release { attempt }
        | Input::LoseLease { attempt }
        | Input::Overrun { attempt }
        | Input::Canceled { attempt, .. }
        | Input::Progress { attempt, .. } => Some(*attempt),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_promise_holds_over_any_history(
        max_retries in 0u32..3,
        broadcast in any::<bool>(),
        history in prop::collection::vec((any_input(), 0u32..30, any::<u64>()), 1..60),
    ) {
        let mut job = new_job(JobSpec { max_retries, broadcast, ..spec() });
        let mut now = NOW;
        for (input, wait, roll) in history {
            now = now.plus_seconds(wait);
            let Ok(step) = step(&job, input.clone(), now, roll) else { continue };
            let next = &*step.job;
            prop_assert_eq!(step.expected, Some(job.version));
            prop_assert_eq!(next.version, job.version + 1);
            if job.status.is_terminal() {
                prop_assert!(matches!(input, Input::Retried { .. }), "only a note may follow the end");
                prop_assert_eq!(next.status, job.status);
            }
            let grown = next.attempt - job.attempt;
            prop_assert_eq!(grown, u32::from(matches!(input, Input::Claim { .. } | Input::Fanout { .. })));
            if let Some(attempt) = attempt_of(&input) {
                prop_assert_eq!(attempt, job.attempt, "an input of another attempt changes nothing");
                prop_assert_eq!(job.status, Status::Running);
            }
            prop_assert!(next.executions() <= 1 + max_retries);
            if job.cancel_requested {
                prop_assert_ne!(next.status, Status::Pending);
            }
            if let Some(event) = &step.event {
                prop_assert_eq!(event.seq, job.event_seq + 1);
            }
            prop_assert_eq!(next.finished_at.is_some(), next.status.is_terminal());
            job = next.clone();
        }
    }
}
