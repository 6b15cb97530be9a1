//! `errand work` against a service that the test plays by hand, over a real socket.

use clap::Parser;
use errand_cli::ClientCommand;
use errand_proto::v1::{
    attach_request::Message as Said, attach_response::Message as Told, result::Outcome as Ended, *,
};
use fake::{Stream, lease, service};

#[path = "../../clients/rust/tests/fake/mod.rs"]
mod fake;

/// Tells the runner to finish what runs, and to leave.
async fn shut_down(stream: &Stream) {
    let kind = CommandKind::Shutdown.into();
    let command = Command { command_id: "c1".to_owned(), kind, graceful: true, ..Default::default() };
    stream.tell(Told::Command(command)).await;
}

#[derive(clap::Parser)]
struct CommandLine {
    #[command(subcommand)]
    command: ClientCommand,
}

async fn work(url: &str, command: &[&str]) -> std::process::ExitCode {
    let switches = ["errand", "work", "--channel", "c", "--server", url, "--token", "t", "--kill-after", "5", "--"];
    let line = CommandLine::try_parse_from(switches.iter().chain(command)).unwrap();
    errand_cli::run(line.command).await
}

#[tokio::test]
async fn a_command_answers_its_payload_and_drains_on_shutdown() {
    let (url, mut opened) = service().await;
    let play = async {
        let mut stream = opened.recv().await.unwrap();
        stream.welcome().await;
        stream.assign("j1", r#"{"n": 12345678901234567890}"#).await;
        let result = stream.result().await;
        let result_json = r#"{"n": 12345678901234567890}"#.to_owned();
        assert_eq!(result.outcome, Some(Ended::Completed(Completed { result_json })));
        stream.accept("j1").await;
        shut_down(&stream).await;
        while let Ok(Some(_)) = stream.said.message().await {}
    };
    let (code, ()) = tokio::join!(work(&url, &["cat"]), play);
    assert_eq!(code, std::process::ExitCode::SUCCESS);
}

#[tokio::test]
async fn standard_error_is_the_log_and_goes_before_the_result() {
    let (url, mut opened) = service().await;
    let play = async {
        let mut stream = opened.recv().await.unwrap();
        stream.welcome().await;
        stream.assign("j1", "{}").await;
        let lines = stream.until(|said| match said {
            Said::Progress(progress) => Some(progress.logs),
            Said::Results(_) => panic!("the result came first"),
            _ => None,
        });
        assert_eq!(lines.await[0].message, "no such address");
        let Some(Ended::Failed(failed)) = stream.result().await.outcome else { panic!("it failed") };
        assert!(failed.permanent);
        assert_eq!(failed.error, "no such address");
        stream.accept("j1").await;
        shut_down(&stream).await;
        while let Ok(Some(_)) = stream.said.message().await {}
    };
    tokio::join!(work(&url, &["sh", "-c", "echo no such address >&2; exit 64"]), play);
}

#[tokio::test]
async fn a_cancel_stops_the_whole_process_group() {
    let (url, mut opened) = service().await;
    let play = async {
        let mut stream = opened.recv().await.unwrap();
        stream.welcome().await;
        stream.assign("j1", "{}").await;
        stream.until(|said| matches!(said, Said::Progress(_)).then_some(())).await;
        let reason = InterruptReason::Requested.into();
        stream.tell(Told::Interrupt(Interrupt { lease: Some(lease("j1")), reason })).await;
        assert_eq!(stream.result().await.outcome, Some(Ended::Canceled(Canceled {})));
        stream.accept("j1").await;
        shut_down(&stream).await;
        while let Ok(Some(_)) = stream.said.message().await {}
    };
    tokio::join!(work(&url, &["sh", "-c", "echo started >&2; sleep 600; true"]), play);
}
