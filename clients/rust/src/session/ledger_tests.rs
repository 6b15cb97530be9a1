//! The ledger's claims, one a test.

use errand_proto::v1::Completed;

use super::*;

fn lease(job: &str) -> Lease {
    Lease { job_id: job.to_owned(), attempt: 1 }
}

fn key(job: &str) -> LeaseKey {
    LeaseKey::from(&lease(job))
}

fn completed() -> result::Outcome {
    result::Outcome::Completed(Completed { result_json: "1".to_owned() })
}

fn receipt(job: &str, accepted: bool) -> ResultReceipt {
    ResultReceipt { lease: Some(lease(job)), accepted }
}

/// Everything there is to say, heartbeats left out.
fn said(ledger: &mut Ledger) -> Vec<Message> {
    std::iter::from_fn(|| ledger.next_outgoing()).filter(|message| !matches!(message, Message::Heartbeat(_))).collect()
}

fn results(messages: &[Message]) -> Vec<JobResult> {
    let batches = messages.iter().filter_map(|message| match message {
        Message::Results(results) => Some(results.results.clone()),
        _ => None,
    });
    batches.flatten().collect()
}

#[test]
fn an_assignment_is_accepted_by_the_next_message() {
    let mut ledger = Ledger::new(2);
    assert_eq!(ledger.assign(&lease("a")), Decision::Start);
    let heartbeat = Message::Heartbeat(Heartbeat { leases: vec![lease("a")] });
    assert_eq!(ledger.next_outgoing(), Some(heartbeat));
    assert!(!ledger.has_outgoing());
}

#[test]
fn accepting_names_only_what_is_new() {
    let mut ledger = Ledger::new(3);
    ledger.assign(&lease("a"));
    ledger.next_outgoing();
    ledger.assign(&lease("b"));
    ledger.assign(&lease("c"));
    ledger.lose(&key("b"));
    let beat = |leases| Some(Message::Heartbeat(Heartbeat { leases }));
    assert_eq!(ledger.next_outgoing(), beat(vec![lease("c")]));
    assert_eq!(ledger.next_outgoing(), None);
    ledger.heartbeat_due();
    assert_eq!(ledger.next_outgoing(), beat(vec![lease("a"), lease("c")]));
}

#[test]
fn a_lease_is_held_until_its_receipt() {
    let mut ledger = Ledger::new(1);
    ledger.assign(&lease("a"));
    ledger.finished(key("a"), completed(), None);
    assert_eq!(ledger.leases(), [lease("a")]);
    assert_eq!(results(&said(&mut ledger)).len(), 1);
    ledger.receipted(&[receipt("a", true)]);
    assert!(ledger.leases().is_empty());
    assert!(ledger.is_settled());
}

#[test]
fn a_result_without_receipt_is_sent_again_after_a_resume() {
    let mut ledger = Ledger::new(1);
    ledger.assign(&lease("a"));
    ledger.finished(key("a"), completed(), None);
    said(&mut ledger);
    assert!(ledger.welcomed(&[]).is_empty());
    assert_eq!(results(&said(&mut ledger)).len(), 1);
}

#[test]
fn a_lost_execution_is_killed_and_its_result_dropped() {
    let mut ledger = Ledger::new(1);
    ledger.assign(&lease("a"));
    assert_eq!(ledger.welcomed(&[lease("a")]), [key("a")]);
    assert!(ledger.leases().is_empty());
    ledger.finished(key("a"), completed(), None);
    assert!(said(&mut ledger).is_empty());
    assert!(ledger.is_settled());
}

#[test]
fn the_same_attempt_never_runs_twice() {
    let mut ledger = Ledger::new(9);
    assert_eq!(ledger.assign(&lease("a")), Decision::Start);
    assert_eq!(ledger.assign(&lease("a")), Decision::Duplicate);
    ledger.finished(key("a"), completed(), None);
    assert_eq!(ledger.assign(&lease("a")), Decision::Duplicate);
    ledger.receipted(&[receipt("a", true)]);
    assert_eq!(ledger.assign(&lease("a")), Decision::Duplicate);
}

#[test]
fn a_released_attempt_may_come_again() {
    let mut ledger = Ledger::new(0);
    assert_eq!(ledger.assign(&lease("a")), Decision::Released);
    ledger.receipted(&[receipt("a", true)]);
    ledger.set_capacity(1);
    assert_eq!(ledger.assign(&lease("a")), Decision::Start);
}

#[test]
fn over_capacity_is_handed_back() {
    let mut ledger = Ledger::new(1);
    ledger.assign(&lease("a"));
    assert_eq!(ledger.assign(&lease("b")), Decision::Released);
    let results = results(&said(&mut ledger));
    assert_eq!(results[0].outcome, Some(result::Outcome::Released(Released {})));
    assert_eq!(ledger.running(), 1);
}

#[test]
fn a_capacity_is_announced_once() {
    let mut ledger = Ledger::new(4);
    ledger.set_capacity(0);
    assert_eq!(said(&mut ledger), [Message::SetCapacity(SetCapacity { capacity: 0 })]);
    assert!(!ledger.has_outgoing());
    // Hello tells it as well.
    ledger.set_capacity(2);
    assert_eq!(ledger.announce(), 2);
    ledger.welcomed(&[]);
    assert!(said(&mut ledger).is_empty());
}

#[test]
fn logs_go_before_the_result() {
    let mut ledger = Ledger::new(1);
    ledger.assign(&lease("a"));
    ledger.progressed(Progress { lease: Some(lease("a")), ..Progress::default() });
    ledger.finished(key("a"), completed(), None);
    let said = said(&mut ledger);
    assert!(matches!(said[..], [Message::Progress(_), Message::Results(_)]));
}

#[test]
fn leaving_at_once_hands_back_what_did_not_complete() {
    let mut ledger = Ledger::new(2);
    ledger.assign(&lease("a"));
    ledger.assign(&lease("b"));
    assert_eq!(ledger.release_all().len(), 2);
    ledger.finished(key("a"), completed(), None);
    ledger.finished(key("b"), result::Outcome::Failed(Default::default()), None);
    let outcomes: Vec<_> = results(&said(&mut ledger)).into_iter().filter_map(|result| result.outcome).collect();
    assert_eq!(outcomes, [completed(), result::Outcome::Released(Released {})]);
}
