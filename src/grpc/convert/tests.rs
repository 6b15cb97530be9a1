//! Conversions at their edges, and both ways.

use errand_proto::v1::{self, attach_request, job_spec, result::Outcome};
use proptest::prelude::*;

use super::*;
use crate::{
    engine::messages::{End, FromRunner, Report},
    model::{Expiry, JobId, JobSpec, Lease, Start, limits::ERROR_MAX, spec as model_spec},
};

const JOB: &str = "0190163d8694739b9f2b7d1c1f2b7d1c";
const RESULT_MAX: usize = 100;

fn wire_time(seconds: i64, nanos: i32) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds, nanos }
}

fn wire_lease() -> Option<v1::Lease> {
    Some(v1::Lease { job_id: JOB.to_owned(), attempt: 2 })
}

fn converted(spec: v1::JobSpec) -> Result<JobSpec, Invalid> {
    super::spec(Some(spec), String::new())
}

proptest! {
    #[test]
    fn times_survive_the_wire(micros in 0..=Timestamp::MAX.0) {
        prop_assert_eq!(time("at", time_to_wire(Timestamp(micros))), Ok(Timestamp(micros)));
    }

    #[test]
    fn cutting_leaves_whole_characters(text in ".*", bytes_max in 0usize..40) {
        let short = cut(text.clone(), bytes_max);
        prop_assert!(short.len() <= bytes_max && text.starts_with(&short));
    }
}

#[test]
fn times_out_of_range_are_refused() {
    for at in [wire_time(-1, 0), wire_time(253_402_300_800, 0), wire_time(0, -1), wire_time(0, 1_000_000_000)] {
        let invalid = time("expires_at", at).expect_err("out of range");
        assert_eq!(invalid.to_string(), "Invalid expires_at: must be a time between 1970 and 9999");
    }
    assert!(time("at", wire_time(i64::MAX, 0)).is_err());
    assert!(time("at", wire_time(253_402_300_799, 999_999_999)).is_ok());
}

#[test]
fn a_run_time_before_1970_has_simply_come() {
    let run_at = Some(job_spec::Start::RunAt(wire_time(-62_135_596_800, 0)));
    let spec = converted(v1::JobSpec { start: run_at, ..Default::default() }).expect("a past time");
    assert_eq!(spec.start, Start::At(Timestamp(0)));
}

#[test]
fn an_empty_spec_gets_the_defaults() {
    let spec = converted(v1::JobSpec::default()).expect("nothing to refuse yet");
    assert_eq!((&*spec.channel, spec.start, spec.expiry), ("default", Start::Now, Expiry::Default));
    assert_eq!((spec.max_retries, spec.backoff_base, spec.backoff_max_seconds), (3, 2.0, 3_600));
    assert_eq!((spec.idempotency_key, spec.priority, spec.broadcast), (None, 0, false));
}

#[test]
fn a_payload_passes_verbatim() {
    let payload_json = r#"{"z": 12345678901234567890123, "a":"é"}"#.to_owned();
    let spec = converted(v1::JobSpec { payload_json: payload_json.clone(), ..Default::default() }).expect("converts");
    assert_eq!(*spec.payload, *payload_json);
}

#[test]
fn a_missing_payload_is_the_models_to_refuse() {
    let spec = converted(v1::JobSpec { func: "f".to_owned(), ..Default::default() }).expect("converts");
    let invalid = spec.check(1_000).expect_err("no payload");
    assert_eq!(invalid.to_string(), "missing required parameters: payload");
}

#[test]
fn a_job_survives_the_wire() {
    let spec = v1::JobSpec { func: "f".to_owned(), payload_json: "{}".to_owned(), ..Default::default() };
    let spec = converted(spec).and_then(|spec| spec.check(1_000)).expect("a good spec");
    let id: JobId = JOB.parse().expect("an id");
    let step = crate::model::create(id, spec, "ann".into(), Timestamp(1_718_360_049_500_000)).expect("a job");
    let wire = job_to_wire(&step.job);
    assert_eq!(job_id(&wire.id).expect("an id"), id);
    assert_eq!((wire.func.as_str(), wire.owner.as_str(), wire.channel.as_str()), ("f", "ann", "default"));
    assert_eq!((wire.payload_json.as_str(), wire.metadata_json.as_str()), ("{}", "{}"));
    assert_eq!((wire.status(), wire.attempt, wire.run_at), (v1::JobStatus::Pending, 0, None));
    assert_eq!(wire.created, Some(wire_time(1_718_360_049, 500_000_000)));
    let expires_in = i64::from(model_spec::EXPIRES_IN_DEFAULT);
    assert_eq!(wire.expires_at, Some(wire_time(1_718_360_049 + expires_in, 500_000_000)));
}

#[test]
fn what_is_no_id_is_no_job() {
    assert_eq!(job_id("nonsense").expect_err("no id").to_string(), "Job not found");
}

fn reported(outcome: Option<Outcome>, metadata: Option<&str>) -> Report {
    let result = v1::Result { lease: wire_lease(), outcome, metadata_json: metadata.map(str::to_owned) };
    let message = attach_request::Message::Results(v1::Results { results: vec![result] });
    match from_runner(v1::AttachRequest { message: Some(message) }, RESULT_MAX) {
        Some(FromRunner::Results(mut reports)) => reports.pop().expect("one report"),
        other => panic!("not results: {other:?}"),
    }
}

fn completed(result_json: &str) -> End {
    reported(Some(Outcome::Completed(v1::Completed { result_json: result_json.to_owned() })), None).end
}

#[test]
fn good_results_pass_verbatim() {
    for result in ["", "null", "[1, 2]", r#"{"a": 1e400}"#] {
        assert_eq!(completed(result), End::Completed(result.to_owned()));
    }
}

#[test]
fn unusable_results_fail_for_good() {
    for result in ["{", "not json", &format!("\"{}\"", "x".repeat(RESULT_MAX))] {
        let End::Failed(failure) = completed(result) else { panic!("{result} passed") };
        assert!(failure.permanent && failure.error.starts_with("invalid result_json: must be "));
    }
    assert!(matches!(reported(None, None).end, End::Failed(_)));
}

#[test]
fn unusable_metadata_is_dropped_and_the_result_kept() {
    let report = reported(Some(Outcome::Canceled(v1::Canceled {})), Some("[]"));
    assert_eq!((report.end, report.metadata), (End::Canceled, None));
    let report = reported(Some(Outcome::Canceled(v1::Canceled {})), Some("{}"));
    assert_eq!(report.metadata.as_deref(), Some("{}"));
}

#[test]
fn long_errors_are_cut() {
    let failed = v1::Failed { error: "é".repeat(ERROR_MAX), ..Default::default() };
    let End::Failed(failure) = reported(Some(Outcome::Failed(failed)), None).end else { panic!("no failure") };
    assert_eq!(failure.error.len(), ERROR_MAX);
}

#[test]
fn leases_that_name_no_job_are_ignored() {
    let bad = v1::Lease { job_id: "x".to_owned(), attempt: 1 };
    let leases = vec![bad, wire_lease().expect("a lease")];
    let message = attach_request::Message::Heartbeat(v1::Heartbeat { leases });
    let message = from_runner(v1::AttachRequest { message: Some(message) }, RESULT_MAX);
    let lease = Lease { job_id: JOB.parse().expect("an id"), attempt: 2 };
    assert_eq!(message, Some(FromRunner::Heartbeat(vec![lease])));
}

#[test]
fn timeouts_reach_from_zero_to_a_minute() {
    let wire = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    assert_eq!(timeout(None), Ok(Duration::from_secs(2)));
    assert_eq!(timeout(wire(0, 0)), Ok(Duration::ZERO));
    assert_eq!(timeout(wire(60, 0)), Ok(Duration::from_secs(60)));
    assert!(timeout(wire(60, 1)).is_err() && timeout(wire(-1, 0)).is_err());
}

#[test]
fn commands_are_checked() {
    let unknown = order(v1::BroadcastCommandRequest::default()).map(|_| ()).expect_err("no command");
    assert_eq!(unknown.to_string(), "Invalid command. Must be one of: status, shutdown, pause, resume, reload");
    let kind = v1::CommandKind::Pause.into();
    let bad = v1::BroadcastCommandRequest { kind, data_json: "[]".to_owned(), ..Default::default() };
    assert_eq!(order(bad).map(|_| ()).expect_err("no object").field, "data");
    assert!(order(v1::BroadcastCommandRequest { kind, ..Default::default() }).is_ok());
}

#[test]
fn only_well_formed_traces_pass() {
    let trace = |text: &str| {
        let mut metadata = tonic::metadata::MetadataMap::new();
        metadata.insert("traceparent", text.parse().expect("ascii"));
        traceparent(&metadata)
    };
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert_eq!(trace(good), good);
    for bad in ["", "x", "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", &good.to_uppercase(), &good[1..]] {
        assert_eq!(trace(bad), "", "{bad}");
    }
}
