//! The leader's look at what comes due, whoever stored it.
//!
//! Each node sets its alarms by what it stores itself, to the microsecond. A node that dies takes its alarms along, and
//! so the one that leads reads from the store when something comes due next.

use std::{sync::Arc, time::Duration};

use super::{Shared, alarm::Alarm};
use crate::{model::Timestamp, store::StoreError};

/// How often the store is asked.
const INTERVAL: Duration = Duration::from_secs(1);

pub async fn run(shared: Arc<Shared>) {
    let stopped = shared.stopped();
    let mut leadership = shared.membership.leadership();
    loop {
        if shared.membership.leads()
            && let Err(error) = look(&shared).await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "the agenda could not be read");
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            _ = leadership.changed() => {}
            () = stopped.cancelled() => return,
        }
    }
}

/// Sets the alarms by what the store says.
pub async fn look(shared: &Shared) -> Result<(), StoreError> {
    let agenda = shared.store.agenda(shared.now()).await?;
    let set = |alarm: &Alarm, at: Option<Timestamp>| at.into_iter().for_each(|at| alarm.set(at));
    set(&shared.alarms.ready, agenda.ready);
    set(&shared.alarms.expiry, agenda.expiry);
    set(&shared.alarms.overrun, agenda.overrun);
    set(&shared.alarms.broadcast, agenda.broadcast);
    set(&shared.alarms.parent, agenda.parent);
    Ok(())
}
