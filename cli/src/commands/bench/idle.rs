//! What runners that wait cost the service: memory, each with a connection of its own.

use std::time::Duration;

use tokio::time::sleep;

use super::{ClientError, crew::Crew, target::Target};

/// What a service allocates at an attach and frees after it is no cost of waiting.
const SETTLE: Duration = Duration::from_millis(500);

/// KiB for each of `count` runners; none where the system does not tell the service's memory.
pub async fn memory_kib(target: &Target, count: u32) -> Result<Option<f64>, ClientError> {
    let in_use = || target.service.as_ref().and_then(|service| service.memory_kib()).map(|(in_use, _)| in_use);
    let before = in_use();
    let crew = Crew::attach(target, &["bench-idle".to_owned()], count, 1, None).await?;
    sleep(SETTLE).await;
    let after = in_use();
    drop(crew);
    Ok(before.zip(after).map(|(before, after)| after.saturating_sub(before) as f64 / f64::from(count)))
}
