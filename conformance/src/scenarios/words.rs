//! The first words of a stream, heartbeats, commands, and words that a runner does not know.

use std::time::Duration;

use errand_proto::v1::{
    CommandKind, CommandReply, InterruptReason, Welcome, attach_request::Message as Said,
    attach_response::Message as Told,
};
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    kit::Kit,
    scenario::{Verdict, ensure, scenarios},
    script::{Line, Play, TOKEN, lease, welcome},
};

scenarios! {
    hello_comes_first: "the first message is a Hello with a valid id, the channels and the capacity, and no session",
    the_token_is_shown: "the stream bears the token as authorization: Bearer",
    nothing_is_said_before_welcome: "after Hello the runner waits for Welcome",
    the_heartbeat_interval_is_kept: "heartbeats come as often as Welcome says",
    a_new_heartbeat_interval_is_kept: "after a reconnect the new Welcome counts",
    heartbeats_go_on_while_functions_compute: "heartbeats come in time while every slot computes",
    a_reply_bears_its_command: "every command is answered once, under its own id",
    an_unknown_command_is_answered_with_an_error: "a command of a later protocol is answered with an error",
    pause_and_resume_announce_the_capacity: "pause announces a capacity of 0, resume the full one",
    a_paused_runner_says_so_again: "after a reconnect a paused runner announces a capacity of 0 again",
    unknown_messages_are_passed_over: "messages of a later protocol do no harm",
    an_unknown_interrupt_reason_does_no_harm: "an interrupt for an unknown reason does not end the runner",
    a_second_welcome_does_no_harm: "a Welcome in the middle of a stream does not end the runner",
}

async fn hello_comes_first(kit: Kit) -> Verdict {
    let mut play = Play::start(&kit, 3).await?;
    let hello = play.script.line().await?.hello().await?;
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || ".-_".contains(letter);
    let id = &hello.runner_id;
    ensure!((1..=64).contains(&id.len()) && id.chars().all(is_letter), "the runner id is {id:?}");
    ensure!(hello.channels == ["scripted"], "the channels are {:?}", hello.channels);
    ensure!(hello.capacity == 3, "the capacity should be 3, and is {}", hello.capacity);
    ensure!(!hello.hostname.is_empty() && !hello.client.is_empty(), "Hello should name host and client: {hello:?}");
    ensure!(hello.session_id.is_empty() && hello.leases.is_empty(), "a new runner resumes nothing: {hello:?}");
    Ok(())
}

async fn the_token_is_shown(kit: Kit) -> Verdict {
    let mut play = Play::start(&kit, 1).await?;
    let line = play.script.line().await?;
    let shown = line.authorization.unwrap_or_default();
    ensure!(shown == format!("Bearer {TOKEN}"), "the authorization is {shown:?}");
    Ok(())
}

async fn nothing_is_said_before_welcome(kit: Kit) -> Verdict {
    let mut play = Play::start(&kit, 1).await?;
    let mut line = play.script.line().await?;
    line.hello().await?;
    let heard = line.listen(Duration::from_secs(1)).await?;
    ensure!(heard.is_empty(), "the runner said {} things before Welcome", heard.len());
    line.tell(Told::Welcome(welcome())).await?;
    line.heartbeat_of(&[]).await
}

/// How far the heartbeats within a span are apart at most, and how many there are.
async fn beats(line: &mut Line, span: Duration) -> Verdict<(Duration, usize)> {
    let begin = Instant::now();
    let heard = line.listen(span).await?;
    let times = heard.iter().filter(|(_, said)| matches!(said, Said::Heartbeat(_))).map(|(at, _)| *at);
    let (mut last, mut longest, mut count) = (begin, Duration::ZERO, 0);
    for at in times.chain([Instant::now()]) {
        longest = longest.max(at - last);
        last = at;
        count += 1;
    }
    Ok((longest, count - 1))
}

/// Between two heartbeats there may be as long as the lease lasts and never longer; on average it is the interval.
async fn beats_as_told(line: &mut Line, interval: Duration) -> Verdict {
    let span = interval * 12;
    let (longest, count) = beats(line, span).await?;
    ensure!(longest < interval * 6, "at an interval of {interval:?} there was no heartbeat for {longest:?}");
    ensure!((6..=30).contains(&count), "within twelve intervals there were {count} heartbeats");
    Ok(())
}

async fn the_heartbeat_interval_is_kept(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 1).await?;
    beats_as_told(&mut line, Duration::from_millis(300)).await
}

async fn a_new_heartbeat_interval_is_kept(kit: Kit) -> Verdict {
    let (mut play, mut line) = Play::begin(&kit, 1).await?;
    line.heartbeat_of(&[]).await?;
    drop(line);
    let heartbeat_interval = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let (mut line, _) = play.script.welcomed(Welcome { heartbeat_interval, ..welcome() }).await?;
    // The one that is said at once belongs to the Welcome.
    line.heartbeat_of(&[]).await?;
    let (_, count) = beats(&mut line, Duration::from_secs(4)).await?;
    ensure!((2..=8).contains(&count), "at an interval of 1 s there were {count} heartbeats within 4 s");
    Ok(())
}

async fn heartbeats_go_on_while_functions_compute(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 4).await?;
    let leases = [lease(1), lease(2), lease(3), lease(4)];
    for lease in &leases {
        line.assign(lease, "busy", r#"{"seconds": 5}"#).await?;
    }
    line.heartbeat_of(&leases).await?;
    let (longest, _) = beats(&mut line, Duration::from_secs(4)).await?;
    ensure!(longest < Duration::from_secs(2), "while functions compute there was no heartbeat for {longest:?}");
    line.results(4).await?;
    Ok(())
}

async fn reply(line: &mut Line) -> Verdict<CommandReply> {
    line.until("a command is answered", |said| match said {
        Said::CommandReply(reply) => Ok(Some(reply)),
        _ => Ok(None),
    })
    .await
}

async fn a_reply_bears_its_command(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 1).await?;
    let kinds = [CommandKind::Ping, CommandKind::Status, CommandKind::Sysinfo, CommandKind::Reload];
    for (number, kind) in kinds.into_iter().enumerate() {
        let id = format!("command-{number}");
        line.command(&id, kind.into()).await?;
        let reply = reply(&mut line).await?;
        ensure!(reply.command_id == id, "the reply to {id} names {:?}", reply.command_id);
        ensure!(reply.error.is_empty(), "{} was answered with {:?}", kind.as_str_name(), reply.error);
        let is_object = reply.data_json.is_empty() || serde_json::from_str::<Value>(&reply.data_json)?.is_object();
        ensure!(is_object, "the data of a reply should be a JSON object, and is {}", reply.data_json);
    }
    Ok(())
}

async fn an_unknown_command_is_answered_with_an_error(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 1).await?;
    line.command("strange", 99).await?;
    let reply = reply(&mut line).await?;
    ensure!(reply.command_id == "strange", "the reply names {:?}", reply.command_id);
    ensure!(!reply.error.is_empty(), "an unknown command should be answered with an error");
    Ok(())
}

async fn announced(line: &mut Line, capacity: u32) -> Verdict {
    line.until(&format!("a capacity of {capacity} is announced"), |said| match said {
        Said::SetCapacity(set) if set.capacity == capacity => Ok(Some(())),
        _ => Ok(None),
    })
    .await
}

async fn pause_and_resume_announce_the_capacity(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 3).await?;
    line.command("pause", CommandKind::Pause.into()).await?;
    announced(&mut line, 0).await?;
    line.command("resume", CommandKind::Resume.into()).await?;
    announced(&mut line, 3).await
}

async fn a_paused_runner_says_so_again(kit: Kit) -> Verdict {
    let (mut play, mut line) = Play::begin(&kit, 3).await?;
    line.command("pause", CommandKind::Pause.into()).await?;
    announced(&mut line, 0).await?;
    drop(line);
    let (mut line, hello) = play.script.welcomed(welcome()).await?;
    if hello.capacity != 0 {
        announced(&mut line, 0).await?;
    }
    line.command("resume", CommandKind::Resume.into()).await?;
    announced(&mut line, 3).await
}

/// The runner is there, and works.
async fn works(line: &mut Line, number: u32) -> Verdict {
    line.assign(&lease(number), "many", r#"{"index": 1}"#).await?;
    let result = line.result().await?;
    ensure!(result.lease == Some(lease(number)), "a result of {:?} came", result.lease);
    line.accept(&[lease(number)]).await
}

async fn unknown_messages_are_passed_over(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 1).await?;
    for number in 1..=3 {
        line.tell_something_unknown().await?;
        works(&mut line, number).await?;
    }
    Ok(())
}

async fn an_unknown_interrupt_reason_does_no_harm(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 2).await?;
    let unknown = errand_proto::v1::Interrupt { lease: Some(lease(7)), reason: 99 };
    line.tell(Told::Interrupt(unknown)).await?;
    line.interrupt(&lease(8), InterruptReason::Requested).await?;
    works(&mut line, 1).await
}

async fn a_second_welcome_does_no_harm(kit: Kit) -> Verdict {
    let (_play, mut line) = Play::begin(&kit, 1).await?;
    line.tell(Told::Welcome(welcome())).await?;
    works(&mut line, 1).await
}
