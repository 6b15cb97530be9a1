//! Lost streams, refusals and servers that go away, message by message.

use errand_proto::v1::{Welcome, result::Outcome};
use tonic::{Code, Status};

use crate::{
    kit::Kit,
    scenario::{Verdict, ensure, scenarios},
    script::{Play, Script, lease, part, welcome},
    subject::Subject,
};

scenarios! {
    a_resume_names_session_and_leases: "after a lost stream Hello names the session and every lease that is held",
    a_result_is_sent_again_after_a_reconnect: "a result without a receipt comes again, under the same lease",
    a_result_with_a_receipt_is_not_sent_again: "a result with a receipt does not come again",
    a_stream_that_ends_with_an_error_is_resumed: "a stream that breaks with UNAVAILABLE is resumed like any other",
    a_new_session_id_is_taken: "the session that the latest Welcome names is the one to resume",
    the_runner_id_stays: "a runner keeps its id through all its streams",
    go_away_is_heeded: "after GoAway the runner opens another stream and resumes there",
    go_away_means_another_server: "of two servers, the runner leaves the one that goes away for the other",
    go_away_then_death: "a server that goes away and dies takes nothing with it",
    unavailable_is_tried_again: "a runner that is refused with UNAVAILABLE comes again",
    a_taken_id_is_tried_again: "ALREADY_EXISTS, its own ghost perhaps, is tried again",
    a_denied_runner_exits: "PERMISSION_DENIED at the first stream ends the runner with an error",
    an_unauthenticated_runner_exits: "UNAUTHENTICATED at the first stream ends the runner with an error",
    a_later_denial_is_no_end: "UNAUTHENTICATED at a reconnect does not end a runner that holds a job",
    a_stream_without_welcome_is_left: "a server that takes Hello and says nothing is left after a while",
}

async fn a_resume_names_session_and_leases(kit: Kit) -> Verdict {
    let (mut play, mut line) = Play::begin(&kit, 2).await?;
    let long = r#"{"seconds": 25}"#;
    line.assign_all(&[(lease(1), "wait_for_cancel", long), (lease(2), "many", r#"{"index": 2}"#)]).await?;
    line.result().await?;
    drop(line);
    let (mut line, hello) = play.script.welcomed(welcome()).await?;
    ensure!(hello.session_id == welcome().session_id, "Hello names the session {:?}", hello.session_id);
    let leases = crate::script::sorted(&hello.leases);
    ensure!(leases == crate::script::sorted(&[lease(1), lease(2)]), "Hello names the leases {leases:?}");
    line.heartbeat_of(&[lease(1), lease(2)]).await
}

async fn a_result_is_sent_again_after_a_reconnect(kit: Kit) -> Verdict {
    let (mut play, mut line) = Play::begin(&kit, 1).await?;
    line.assign(&lease(1), "many", r#"{"index": 1}"#).await?;
    let first = line.result().await?;
    for _ in 0..3 {
        drop(line);
        (line, _) = play.script.welcomed(welcome()).await?;
        let again = line.result().await?;
        ensure!(again == first, "the result should come again as it was: {again:?}");
    }
    line.accept(&[lease(1)]).await?;
    line.heartbeat_of(&[]).await
}

async fn a_result_with_a_receipt_is_not_sent_again(kit: Kit) -> Verdict {
    let (mut play, mut line) = Play::begin(&kit, 1).await?;
    line.assign(&lease(1), "many", r#"{"index": 1}"#).await?;
    line.result().await?;
    line.accept(&[lease(1)]).await?;
    line.heartbeat_of(&[]).await?;
    drop(line);
    let (mut line, hello) = play.script.welcomed(welcome()).await?;
    ensure!(hello.leases.is_empty(), "Hello still names {:?}", hello.leases);
    line.assign(&lease(2), "many", r#"{"index": 2}"#).await?;
    let result = line.result().await?;
    ensure!(result.lease == Some(lease(2)), "a result with a receipt came again: {:?}", result.lease);
    Ok(())
}

async fn a_stream_that_ends_with_an_error_is_resumed(kit: Kit) -> Verdict {
    let (mut play, mut line) = Play::begin(&kit, 1).await?;
    line.assign(&lease(1), "sleep", r#"{"seconds": 1}"#).await?;
    line.heartbeat_of(&[lease(1)]).await?;
    line.fail(Status::unavailable("the script breaks off")).await?;
    let (mut line, hello) = play.script.welcomed(welcome()).await?;
    ensure!(hello.leases == [lease(1)], "Hello names {:?}", hello.leases);
    let result = line.result().await?;
    ensure!(matches!(result.outcome, Some(Outcome::Completed(_))), "the job ended as {:?}", result.outcome);
    Ok(())
}

async fn a_new_session_id_is_taken(kit: Kit) -> Verdict {
    let (mut play, line) = Play::begin(&kit, 1).await?;
    drop(line);
    let session_id = "0123456789abcdef0123456789abcdef".to_owned();
    let (mut line, _) = play.script.welcomed(Welcome { session_id: session_id.clone(), ..welcome() }).await?;
    line.heartbeat_of(&[]).await?;
    drop(line);
    let (_, hello) = play.script.welcomed(welcome()).await?;
    ensure!(hello.session_id == session_id, "Hello names the session {:?}", hello.session_id);
    Ok(())
}

async fn the_runner_id_stays(kit: Kit) -> Verdict {
    let mut play = Play::start(&kit, 1).await?;
    let (line, first) = play.script.welcomed(welcome()).await?;
    drop(line);
    let (_, second) = play.script.welcomed(welcome()).await?;
    ensure!(first.runner_id == second.runner_id, "{:?} became {:?}", first.runner_id, second.runner_id);
    Ok(())
}

async fn go_away_is_heeded(kit: Kit) -> Verdict {
    let (mut play, mut line) = Play::begin(&kit, 1).await?;
    line.assign(&lease(1), "sleep", r#"{"seconds": 2}"#).await?;
    line.heartbeat_of(&[lease(1)]).await?;
    line.go_away().await?;
    let (mut second, hello) = play.script.welcomed(welcome()).await?;
    ensure!(hello.leases == [lease(1)], "Hello names {:?}", hello.leases);
    let result = second.result().await?;
    ensure!(matches!(result.outcome, Some(Outcome::Completed(_))), "the job ended as {:?}", result.outcome);
    Ok(())
}

/// Two servers and a runner that is attached to the first one it chose, with a job under way.
async fn two_servers(kit: &Kit) -> Verdict<(Script, Script, crate::script::Line, Subject)> {
    let (mut one, mut other) = (Script::open().await?, Script::open().await?);
    let runner = Subject::start(kit, &part(&[&one, &other], 1))?;
    let (mut line, is_one) = tokio::select! {
        line = one.line() => (line?, true),
        line = other.line() => (line?, false),
    };
    line.hello().await?;
    line.tell(errand_proto::v1::attach_response::Message::Welcome(welcome())).await?;
    line.assign(&lease(1), "sleep", r#"{"seconds": 2}"#).await?;
    line.heartbeat_of(&[lease(1)]).await?;
    Ok(if is_one { (one, other, line, runner) } else { (other, one, line, runner) })
}

async fn go_away_means_another_server(kit: Kit) -> Verdict {
    let (first, mut second, line, _runner) = two_servers(&kit).await?;
    line.go_away().await?;
    let (mut line, hello) = second.welcomed(welcome()).await?;
    let resumes = hello.session_id == welcome().session_id && hello.leases == [lease(1)];
    ensure!(resumes, "at the other server it should resume its session and its lease: {hello:?}");
    ensure!(first.attaches() == 1, "it came back {} times to the server that goes away", first.attaches() - 1);
    let result = line.result().await?;
    ensure!(matches!(result.outcome, Some(Outcome::Completed(_))), "the job ended as {:?}", result.outcome);
    Ok(())
}

async fn go_away_then_death(kit: Kit) -> Verdict {
    let (first, mut second, mut line, _runner) = two_servers(&kit).await?;
    line.result().await?;
    line.go_away().await?;
    drop(line);
    drop(first);
    let (mut line, hello) = second.welcomed(welcome()).await?;
    ensure!(hello.leases == [lease(1)], "Hello names {:?}", hello.leases);
    line.result().await?;
    line.accept(&[lease(1)]).await?;
    line.heartbeat_of(&[]).await
}

async fn unavailable_is_tried_again(kit: Kit) -> Verdict {
    let script = Script::open().await?;
    script.refuse((0..3).map(|_| Status::unavailable("not yet")));
    comes_again(&kit, script).await
}

async fn a_taken_id_is_tried_again(kit: Kit) -> Verdict {
    let script = Script::open().await?;
    script.refuse((0..2).map(|_| Status::already_exists("another live session bears this runner id")));
    comes_again(&kit, script).await
}

async fn comes_again(kit: &Kit, mut script: Script) -> Verdict {
    let _runner = Subject::start(kit, &part(&[&script], 1))?;
    let (mut line, _) = script.welcomed(welcome()).await?;
    line.heartbeat_of(&[]).await
}

async fn exits(kit: Kit, code: Code) -> Verdict {
    let script = Script::open().await?;
    script.refuse((0..50).map(|_| Status::new(code, "the script will not have it")));
    let mut runner = Subject::start(&kit, &part(&[&script], 1))?;
    let status = runner.exit().await?;
    ensure!(!status.success(), "a runner that is refused should not exit 0");
    let said = std::fs::read_to_string(kit.runner_log())?;
    ensure!(!said.trim().is_empty(), "the runner exited without a word on standard error");
    Ok(())
}

async fn a_denied_runner_exits(kit: Kit) -> Verdict {
    exits(kit, Code::PermissionDenied).await
}

async fn an_unauthenticated_runner_exits(kit: Kit) -> Verdict {
    exits(kit, Code::Unauthenticated).await
}

async fn a_later_denial_is_no_end(kit: Kit) -> Verdict {
    let (mut play, mut line) = Play::begin(&kit, 1).await?;
    line.assign(&lease(1), "sleep", r#"{"seconds": 1}"#).await?;
    line.heartbeat_of(&[lease(1)]).await?;
    play.script.refuse((0..2).map(|_| Status::unauthenticated("the key is being changed")));
    drop(line);
    let (mut line, hello) = play.script.welcomed(welcome()).await?;
    ensure!(hello.leases == [lease(1)], "Hello names {:?}", hello.leases);
    line.result().await?;
    Ok(())
}

async fn a_stream_without_welcome_is_left(kit: Kit) -> Verdict {
    let mut play = Play::start(&kit, 1).await?;
    let mut silent = play.script.line().await?;
    silent.hello().await?;
    let (mut line, _) = play.script.welcomed(welcome()).await?;
    line.heartbeat_of(&[]).await?;
    // Kept until here: it was not the server that hung up.
    drop(silent);
    Ok(())
}
