//! Runners and services that want to know who the other one is.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use tokio::time::sleep;

use crate::{
    authority::{Authority, Identity},
    kit::Kit,
    scenario::{Verdict, ensure, eventually, scenarios},
    service::PATIENT,
    stage::{NAME, Setup, Stage, Tls},
};

scenarios! {
    tls_with_an_authority_of_its_own: "a runner works over TLS where ERRAND_TLS_CA names the server's authority",
    mutual_tls: "a runner shows the certificate that ERRAND_CLIENT_TLS_CERT and ERRAND_CLIENT_TLS_KEY name",
    a_stream_over_tls_is_resumed: "over mutual TLS, a job that runs while the stream breaks is not run twice",
    a_runner_without_a_certificate_stays_out: "without a certificate, where one is asked for, a runner does not attach",
    a_server_of_another_authority_is_not_trusted: "a runner does not talk to a server that its authority did not vouch for, and says why",
    a_server_of_another_name_is_not_trusted: "a runner does not talk to a server whose certificate is for another host, and says why",
}

/// What the variables of a runner are called.
const CA: &str = "ERRAND_TLS_CA";
const CERT: &str = "ERRAND_CLIENT_TLS_CERT";
const KEY: &str = "ERRAND_CLIENT_TLS_KEY";
/// By the address that the runner dials, and by the name that the kit does.
const BOTH: &[&str] = &["127.0.0.1", NAME];
const LASTING: Setup = Setup { capacity: 4, timings: PATIENT };
/// How long a runner that must not attach is watched: more than a first attempt and some more take.
const WATCHED: Duration = Duration::from_secs(3);

/// What libraries call it that a server cannot be trusted.
const WHY: &[&str] = &["certificate", "hostname"];

/// Whether the service asks for a client's certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    Nothing,
    Certificate,
}

/// A service with a certificate of the authority, for these hosts; and a runner that trusts and shows nothing yet.
fn tls(authority: &Authority, hosts: &[&str], asks: Asks) -> Verdict<Tls> {
    let Identity { certificate, key } = authority.issue("server", hosts)?;
    let mut switches: Vec<OsString> = vec!["--tls-cert".into(), certificate.into(), "--tls-key".into(), key.into()];
    if asks == Asks::Certificate {
        switches.extend(["--tls-client-ca".into(), authority.file.clone().into()]);
    }
    let own = authority.issue("kit", &["kit.test"])?;
    Ok(Tls { switches, authority: authority.file.clone(), own, runner: Vec::new() })
}

/// What a runner of mutual TLS is told.
fn identity(authority: &Authority) -> Verdict<Vec<(&'static str, PathBuf)>> {
    let Identity { certificate, key } = authority.issue("runner", &["runner.test"])?;
    Ok(vec![(CA, authority.file.clone()), (CERT, certificate), (KEY, key)])
}

async fn works_over(kit: &Kit, tls: Tls) -> Verdict {
    let mut stage = Stage::secure(kit, Setup::default(), tls).await?;
    stage.attached().await?;
    stage.result("echo", "{}").await?;
    Ok(())
}

async fn tls_with_an_authority_of_its_own(kit: Kit) -> Verdict {
    let authority = Authority::new(&kit.folder, "authority")?;
    let runner = vec![(CA, authority.file.clone())];
    works_over(&kit, Tls { runner, ..tls(&authority, BOTH, Asks::Nothing)? }).await
}

async fn mutual_tls(kit: Kit) -> Verdict {
    let authority = Authority::new(&kit.folder, "authority")?;
    let runner = identity(&authority)?;
    works_over(&kit, Tls { runner, ..tls(&authority, BOTH, Asks::Certificate)? }).await
}

async fn a_stream_over_tls_is_resumed(kit: Kit) -> Verdict {
    let authority = Authority::new(&kit.folder, "authority")?;
    let tls = Tls { runner: identity(&authority)?, ..tls(&authority, BOTH, Asks::Certificate)? };
    let mut stage = Stage::secure(&kit, LASTING, tls).await?;
    stage.attached().await?;
    let id = stage.publish("starts", r#"{"seconds": 3}"#).await?;
    stage.under_way(&id).await?;
    let before = stage.proxy.connects();
    stage.proxy.cut();
    super::network::ran_once(&stage.ended(&id).await?)?;
    ensure!(stage.proxy.connects() > before, "the runner did not connect again");
    Ok(())
}

async fn a_runner_without_a_certificate_stays_out(kit: Kit) -> Verdict {
    let authority = Authority::new(&kit.folder, "authority")?;
    let tls = Tls { runner: vec![(CA, authority.file.clone())], ..tls(&authority, BOTH, Asks::Certificate)? };
    let stage = Stage::secure(&kit, Setup::default(), tls).await?;
    // The server hangs up without saying why.
    stays_out(stage, &[]).await
}

async fn a_server_of_another_authority_is_not_trusted(kit: Kit) -> Verdict {
    let authority = Authority::new(&kit.folder, "authority")?;
    let another = Authority::new(&kit.folder, "another")?;
    let tls = Tls { runner: vec![(CA, another.file)], ..tls(&authority, BOTH, Asks::Nothing)? };
    stays_out(Stage::secure(&kit, Setup::default(), tls).await?, WHY).await
}

async fn a_server_of_another_name_is_not_trusted(kit: Kit) -> Verdict {
    let authority = Authority::new(&kit.folder, "authority")?;
    // The runner dials the address.
    let tls = Tls { runner: vec![(CA, authority.file.clone())], ..tls(&authority, &[NAME], Asks::Nothing)? };
    stays_out(Stage::secure(&kit, Setup::default(), tls).await?, WHY).await
}

/// The runner tries, does not attach, and says something: one of these words, if there are any.
async fn stays_out(stage: Stage, words: &[&str]) -> Verdict {
    eventually("the runner tries", || async { Ok((stage.proxy.connects() > 0).then_some(())) }).await?;
    eventually("the runner says why it cannot connect", || async {
        let said = stage.said()?.to_lowercase();
        let fits = words.iter().any(|word| said.contains(word)) || words.is_empty() && !said.trim().is_empty();
        Ok(fits.then_some(()))
    })
    .await?;
    sleep(WATCHED).await;
    ensure!(stage.live_runner().await?.is_none(), "the runner attached all the same");
    Ok(())
}
