//! What `errand.publish` leaves, and how it becomes jobs.

use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection, Row};

use super::*;
use crate::{
    model::{Start, Step, lifecycle::create_refused, limits},
    store::{Arrival, ArrivalPage},
};

const PAGE: ArrivalPage = ArrivalPage { arrivals_max: 100, bytes_max: 1 << 20 };

/// Publishes with these arguments; tells the id, or the code and the sentence of the refusal.
async fn publish(connection: &mut PgConnection, arguments: &str) -> Result<JobId, (String, String)> {
    let statement = format!("SELECT errand.publish({arguments})");
    match sqlx::query(sqlx::AssertSqlSafe(statement)).fetch_one(connection).await {
        Ok(row) => Ok(row.get::<String, _>(0).parse().expect("an id")),
        Err(error) => {
            let error = error.into_database_error().expect("a refusal");
            Err((error.code().expect("a code").into_owned(), error.message().to_owned()))
        }
    }
}

async fn run(connection: &mut PgConnection, statement: &'static str) {
    connection.execute(statement).await.expect(statement);
}

fn arrived(arrival: &Arrival) -> Step {
    let spec = arrival.spec.clone().check(usize::MAX).expect("a fine spec");
    let step = create(arrival.id, spec, arrival.owner.clone(), arrival.made).expect("a job");
    Step { arrives: true, ..step }
}

#[tokio::test]
async fn every_argument_arrives() {
    let scratch = Scratch::new().await;
    let (store, mut publisher) = (scratch.store().await, scratch.connect().await);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let all = format!(
        "func => 'app.send', payload => '{{\"z\": 1, \"a\": 12345678901234567890}}', channel => 'mail', delay => 4294,
         max_retries => 7, expires_in => 60, broadcast => true, max_exec_seconds => 5, idempotency_key => 'k',
         priority => -3, backoff_base => 1.5, backoff_max => 9, traceparent => '{trace}'"
    );
    let id = publish(&mut publisher, &all).await.expect("a publish");
    let bare = publish(&mut publisher, "'app.send', '{}'").await.expect("a publish");
    let at = "run_at => '2023-11-14T22:13:20.5Z', delay => 3, expires_at => '2100-01-01Z', expires_in => 3";
    let timed = publish(&mut publisher, &format!("'app.send', '{{}}', {at}")).await.expect("a publish");
    let arrivals = store.arrivals(PAGE).await.expect("arrivals");
    assert_eq!(arrivals.iter().map(|arrival| arrival.id).collect::<Vec<_>>(), [id, bare, timed], "in order of age");
    let expected = JobSpec {
        func: "app.send".into(),
        payload: r#"{"a": 12345678901234567890, "z": 1}"#.into(),
        channel: "mail".into(),
        start: Start::In(4294),
        expiry: Expiry::In(60),
        max_retries: 7,
        backoff_base: 1.5,
        backoff_max_seconds: 9,
        broadcast: true,
        max_exec_seconds: Some(5),
        idempotency_key: Some("k".into()),
        priority: -3,
        traceparent: trace.to_owned(),
        fingerprint: [0; 16],
    };
    assert_eq!((&arrivals[0].spec, &*arrivals[0].owner), (&expected, "errand"));
    let expected = JobSpec {
        func: "app.send".into(),
        channel: "default".into(),
        max_retries: 3,
        backoff_base: 2.0,
        backoff_max_seconds: 3_600,
        fingerprint: [0; 16],
        ..JobSpec::sample()
    };
    assert_eq!(arrivals[1].spec, expected);
    assert_eq!(arrivals[2].spec.start, Start::At(Timestamp(1_700_000_000_500_000)));
    assert_eq!(arrivals[2].spec.expiry, Expiry::At(Timestamp(4_102_444_800_000_000)));
}

#[tokio::test]
async fn an_id_tells_when_it_was_made() {
    let scratch = Scratch::new().await;
    let (store, mut publisher) = (scratch.store().await, scratch.connect().await);
    let mut ids = Vec::new();
    for _ in 0..50 {
        ids.push(publish(&mut publisher, "'f', '{}'").await.expect("a publish"));
    }
    assert!(ids.is_sorted());
    for arrival in store.arrivals(PAGE).await.expect("arrivals") {
        assert_eq!((arrival.id.0.get_version_num(), arrival.id.0.get_variant()), (7, uuid::Variant::RFC4122));
        assert!(JobId::first_made_at(arrival.made) <= arrival.id);
        assert!(arrival.id < JobId::first_made_at(arrival.made.plus(Duration::from_secs(1))));
    }
}

#[tokio::test]
async fn the_database_knows_the_limits_of_the_service() {
    let scratch = Scratch::new().await;
    let (store, mut publisher) = (scratch.store().await, scratch.connect().await);
    let seconds = i64::from(limits::SECONDS_MAX);
    let (func, key, channel) =
        ("f".repeat(limits::FUNC_MAX), "k".repeat(limits::IDEMPOTENCY_KEY_MAX), "c".repeat(limits::CHANNEL_MAX));
    let cases = [
        ("func", format!("'{func}'"), format!("'{func}f'")),
        ("func", "'a\u{e9}b'".to_owned(), "'a\u{2003}b'".to_owned()),
        ("channel", format!("'{channel}'"), format!("'{channel}c'")),
        ("channel", "'a.b-c_D9'".to_owned(), "E'a\\n'".to_owned()),
        ("idempotency_key", format!("'{key}'"), format!("'{key}k'")),
        ("max_retries", limits::MAX_RETRIES_MAX.to_string(), (limits::MAX_RETRIES_MAX + 1).to_string()),
        ("max_retries", "0".to_owned(), "-1".to_owned()),
        ("delay", seconds.to_string(), (seconds + 1).to_string()),
        ("delay", "0".to_owned(), "-1".to_owned()),
        ("expires_in", seconds.to_string(), (seconds + 1).to_string()),
        ("expires_in", "1".to_owned(), "0".to_owned()),
        ("max_exec_seconds", seconds.to_string(), (seconds + 1).to_string()),
        ("max_exec_seconds", "1".to_owned(), "0".to_owned()),
        ("backoff_max", seconds.to_string(), (seconds + 1).to_string()),
        ("backoff_base", "0".to_owned(), "'NaN'".to_owned()),
        ("backoff_base", "1e300".to_owned(), "'Infinity'".to_owned()),
        ("run_at", "'-infinity'".to_owned(), "'infinity'".to_owned()),
        ("expires_at", "'9999-12-31T23:59:59Z'".to_owned(), "'10000-01-01Z'".to_owned()),
        ("expires_at", "now() + interval '1 minute'".to_owned(), "now()".to_owned()),
        ("payload", "'{}'".to_owned(), "'[1]'".to_owned()),
    ];
    for (field, good, bad) in cases {
        let with = |value: &str| match field {
            "func" => format!("func => {value}, payload => '{{}}'"),
            "payload" => format!("func => 'f', payload => {value}"),
            _ => format!("func => 'f', payload => '{{}}', {field} => {value}"),
        };
        publish(&mut publisher, &with(&good)).await.unwrap_or_else(|refusal| panic!("{field} => {good}: {refusal:?}"));
        let (code, sentence) = publish(&mut publisher, &with(&bad)).await.expect_err(&bad);
        assert_eq!(
            (code.as_str(), sentence.starts_with(&format!("Invalid {field}: must be"))),
            ("22023", true),
            "{sentence}"
        );
    }
    let (_, sentence) = publish(&mut publisher, "NULL, NULL").await.expect_err("nothing");
    assert_eq!(sentence, "missing required parameters: func, payload");
    // What the database takes, the service takes too.
    for arrival in store.arrivals(PAGE).await.expect("arrivals") {
        arrived(&arrival);
    }
    store.set_payload_max(9).await.expect("a limit");
    publish(&mut publisher, "'f', '{\"a\": 10}'").await.expect("nine bytes");
    let (code, sentence) = publish(&mut publisher, "'f', '{\"a\": 100}'").await.expect_err("ten bytes");
    assert_eq!((code.as_str(), sentence.as_str()), ("54000", "Payload exceeds maximum size of 9 bytes"));
}

#[tokio::test]
async fn an_arrival_shows_once_its_transaction_has_committed_and_never_else() {
    let scratch = Scratch::new().await;
    let (store, mut publisher) = (scratch.store().await, scratch.connect().await);
    run(&mut publisher, "BEGIN").await;
    publish(&mut publisher, "'f', '{}'").await.expect("a publish");
    assert_eq!(store.arrivals(PAGE).await.expect("arrivals"), []);
    run(&mut publisher, "ROLLBACK").await;
    assert_eq!(store.arrivals(PAGE).await.expect("arrivals"), []);
    run(&mut publisher, "BEGIN").await;
    let id = publish(&mut publisher, "'f', '{}'").await.expect("a publish");
    run(&mut publisher, "COMMIT").await;
    let arrivals = store.arrivals(PAGE).await.expect("arrivals");
    assert_eq!(arrivals.iter().map(|arrival| arrival.id).collect::<Vec<_>>(), [id]);
}

#[tokio::test]
async fn a_look_is_bounded_by_number_and_by_bytes() {
    let scratch = Scratch::new().await;
    let (store, mut publisher) = (scratch.store().await, scratch.connect().await);
    for _ in 0..5 {
        publish(&mut publisher, "'f', jsonb_build_object('a', repeat('x', 991))").await.expect("a publish");
    }
    for (arrivals_max, bytes_max, expected) in [(3, 1 << 20, 3), (100, 2_000, 2), (100, 2_001, 3), (100, 1, 1)] {
        let page = ArrivalPage { arrivals_max, bytes_max };
        let arrivals = store.arrivals(page).await.expect("arrivals");
        assert_eq!(arrivals.len(), expected, "{page:?}");
        assert!(page.is_full(&arrivals));
    }
    assert!(!PAGE.is_full(&store.arrivals(PAGE).await.expect("arrivals")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_arrival_becomes_one_job_however_many_nodes_take_it_in() {
    let scratch = Scratch::new().await;
    let stores = [Arc::new(scratch.store().await), Arc::new(scratch.store().await)];
    let mut publisher = scratch.connect().await;
    for number in 0..40 {
        let key = if number % 2 == 0 { format!("'{number}'") } else { "NULL".to_owned() };
        publish(&mut publisher, &format!("'f', '{{}}', idempotency_key => {key}")).await.expect("a publish");
    }
    let arrivals = stores[0].arrivals(PAGE).await.expect("arrivals");
    let steps: Arc<Vec<Step>> = Arc::new(arrivals.iter().map(arrived).collect());
    let mut nodes = tokio::task::JoinSet::new();
    for task in 0..8 {
        let (store, steps) = (stores[task % 2].clone(), steps.clone());
        // One at a time, so that they meet again and again.
        nodes.spawn(async move {
            let mut made = Vec::new();
            for step in steps.iter() {
                match store.commit(std::slice::from_ref(step)).await.expect("a commit")[..] {
                    [Outcome::Applied] => made.push(step.job.id),
                    ref outcome => assert_eq!(outcome, [Outcome::Stale]),
                }
            }
            made
        });
    }
    let mut made: Vec<JobId> = nodes.join_all().await.concat();
    made.sort();
    assert_eq!(made, steps.iter().map(|step| step.job.id).collect::<Vec<_>>());
    assert_eq!(stores[1].arrivals(PAGE).await.expect("arrivals"), []);
    assert_eq!(stores[1].tally(at(0)).await.expect("a tally").channels["default"].scheduled, 40);
    // Not even a job that is gone comes back.
    assert!(stores[0].delete(made[1], 1).await.expect("a deletion"));
    assert_eq!(stores[0].commit(&steps[1..2]).await.expect("a commit"), [Outcome::Stale]);
}

#[tokio::test]
async fn a_key_answers_with_its_job_wherever_that_is() {
    let scratch = Scratch::new().await;
    let (store, mut publisher) = (scratch.store().await, scratch.connect().await);
    let same = "'f', '{\"a\": 1}', idempotency_key => 'k', delay => 60";
    let others = [
        "'g', '{\"a\": 1}', idempotency_key => 'k', delay => 60",
        "'f', '{\"a\": 2}', idempotency_key => 'k', delay => 60",
        "'f', '{\"a\": 1}', idempotency_key => 'k', delay => 61",
        "'f', '{\"a\": 1}', idempotency_key => 'k', delay => 60, expires_in => 5",
    ];
    let id = publish(&mut publisher, same).await.expect("a publish");
    for stage in ["an arrival", "a job", "a finished job"] {
        match stage {
            "an arrival" => {}
            "a job" => {
                let arrivals = store.arrivals(PAGE).await.expect("arrivals");
                assert_eq!(store.commit(&[arrived(&arrivals[0])]).await.expect("a commit"), [Outcome::Applied]);
            }
            _ => {
                let canceled = step(&loaded(&store, id).await, Input::Cancel, at(9), 0).expect("an end");
                assert_eq!(store.commit(&[canceled]).await.expect("a commit"), [Outcome::Applied]);
            }
        }
        assert_eq!(publish(&mut publisher, same).await, Ok(id), "{stage}");
        for other in others {
            let (code, sentence) = publish(&mut publisher, other).await.expect_err(stage);
            let expected = "Idempotency key \"k\" was used for a job with other content";
            assert_eq!((code.as_str(), sentence.as_str()), ("23505", expected), "{stage}: {other}");
        }
    }
    assert_eq!(store.arrivals(PAGE).await.expect("arrivals"), []);
}

#[tokio::test]
async fn a_node_waits_for_no_transaction_that_publishes() {
    let scratch = Scratch::new().await;
    let (store, mut publisher) = (scratch.store().await, scratch.connect().await);
    run(&mut publisher, "BEGIN").await;
    let id = publish(&mut publisher, "'f', '{}', idempotency_key => 'k'").await.expect("a publish");
    // The same owner, key and channel, over the API and in the same moment.
    let spec = JobSpec { channel: "default".into(), idempotency_key: Some("k".into()), ..spec() };
    let rival = create(JobId(uuid::Uuid::from_u128(1)), spec, "errand".into(), at(0)).expect("a job");
    assert_eq!(store.commit(&[rival]).await.expect("a commit while the transaction is open"), [Outcome::Applied]);
    run(&mut publisher, "COMMIT").await;
    // Both were told of a job; the second one's tells why it will not run.
    let arrivals = store.arrivals(PAGE).await.expect("arrivals");
    let outcome = store.commit(&[arrived(&arrivals[0])]).await.expect("a commit");
    assert_eq!(outcome, [Outcome::Duplicate(JobId(uuid::Uuid::from_u128(1)))]);
    assert_eq!(store.arrivals(PAGE).await.expect("arrivals"), arrivals, "it does not vanish");
    let Arrival { spec, owner, .. } = arrivals[0].clone();
    let [made, ended] = create_refused(id, spec, owner, at(0), "taken".into());
    let steps = [Step { arrives: true, ..made }, ended];
    assert_eq!(store.commit_all(&steps).await.expect("a commit"), [Outcome::Applied; 2]);
    assert_eq!(loaded(&store, id).await.last_error, "taken");
    assert_eq!(store.arrivals(PAGE).await.expect("arrivals"), []);
    assert_eq!(store.commit_all(&steps).await.expect("a commit")[0], Outcome::Stale, "and once only");
}

#[tokio::test]
async fn nobody_publishes_who_was_not_granted_it() {
    let scratch = Scratch::new().await;
    let (store, mut publisher) = (scratch.store().await, scratch.connect().await);
    // Roles belong to the whole server, which other tests share.
    let role = format!("publisher_{:016x}", crate::clock::Dice::roll(&crate::clock::SystemDice::new()));
    let execute = async |connection: &mut PgConnection, statement: String| {
        connection.execute(sqlx::AssertSqlSafe(statement)).await.expect("a statement");
    };
    execute(&mut publisher, format!("CREATE ROLE {role}; GRANT USAGE ON SCHEMA errand TO {role}")).await;
    execute(&mut publisher, format!("SET ROLE {role}")).await;
    let (code, _) = publish(&mut publisher, "'f', '{}'").await.expect_err("a refusal");
    assert_eq!(code, "42501");
    run(&mut publisher, "RESET ROLE").await;
    execute(&mut publisher, format!("GRANT EXECUTE ON FUNCTION errand.publish TO {role}")).await;
    execute(&mut publisher, format!("SET ROLE {role}")).await;
    publish(&mut publisher, "'f', '{}'").await.expect("a publish");
    let looked = sqlx::query("SELECT 1 FROM errand.arrivals").fetch_all(&mut publisher).await;
    assert!(looked.is_err(), "it may publish and nothing else");
    assert_eq!(*store.arrivals(PAGE).await.expect("arrivals")[0].owner, role);
    run(&mut publisher, "RESET ROLE").await;
    execute(&mut publisher, format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn the_bell_rings_for_arrivals_and_after_each_loss() {
    let scratch = Scratch::new().await;
    let (store, mut publisher) = (scratch.store().await, scratch.connect().await);
    let bell = store.bell().expect("a bell");
    let patience = Duration::from_secs(20);
    let listening = tokio::spawn(store.listen("node-1".into()));
    for loss in [false, true] {
        if loss {
            let lost = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND query LIKE 'LISTEN%'";
            assert_eq!(publisher.execute(lost).await.expect("a loss").rows_affected(), 1);
            assert!(bell.rung_within(patience).await, "it says that it hears nothing");
        }
        while !bell.is_reliable() {
            assert!(bell.rung_within(patience).await, "it hears, and may have missed something");
        }
        while bell.rung_within(Duration::ZERO).await {}
        run(&mut publisher, "BEGIN").await;
        publish(&mut publisher, "'f', '{}'").await.expect("a publish");
        run(&mut publisher, "COMMIT").await;
        assert!(bell.rung_within(patience).await, "it rings for the arrival");
    }
    listening.abort();
    publisher.close().await.expect("a farewell");
}
