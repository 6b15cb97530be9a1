//! Commands to runners.

use std::time::Duration;

use errand_proto::v1;

use super::{duration_to_wire, timeout};
use crate::{
    engine::{Order, messages::CommandKind},
    model::{Invalid, limits::METADATA_MAX, spec::check_object},
};

/// A command for many runners.
pub fn order(wire: v1::BroadcastCommandRequest) -> Result<Order, Invalid> {
    let kind = v1::CommandKind::try_from(wire.kind).ok().and_then(kind).ok_or_else(|| Invalid {
        field: "command",
        too_large: false,
        message: "Invalid command. Must be one of: status, shutdown, pause, resume, reload".to_owned(),
    })?;
    if !wire.data_json.is_empty() {
        check_object("data", &wire.data_json)?;
    }
    if wire.data_json.len() > METADATA_MAX {
        return Err(Invalid::new("data", format_args!("must be at most {METADATA_MAX} bytes")));
    }
    Ok(Order { kind, data: wire.data_json, timeout: timeout(wire.timeout)?, runner_ids: wire.runner_ids })
}

fn kind(wire: v1::CommandKind) -> Option<CommandKind> {
    match wire {
        v1::CommandKind::Unspecified => None,
        v1::CommandKind::Ping => Some(CommandKind::Ping),
        v1::CommandKind::Status => Some(CommandKind::Status),
        v1::CommandKind::Pause => Some(CommandKind::Pause),
        v1::CommandKind::Resume => Some(CommandKind::Resume),
        v1::CommandKind::Reload => Some(CommandKind::Reload),
        v1::CommandKind::Shutdown => Some(CommandKind::Shutdown),
        v1::CommandKind::Sysinfo => Some(CommandKind::Sysinfo),
    }
}

/// Absent: the runner did not answer in time.
pub fn ping_to_wire(round_trip: Option<Duration>) -> v1::PingRunnerResponse {
    v1::PingRunnerResponse { responsive: round_trip.is_some(), round_trip: round_trip.map(duration_to_wire) }
}

pub(super) fn kind_to_wire(kind: CommandKind) -> v1::CommandKind {
    match kind {
        CommandKind::Ping => v1::CommandKind::Ping,
        CommandKind::Status => v1::CommandKind::Status,
        CommandKind::Pause => v1::CommandKind::Pause,
        CommandKind::Resume => v1::CommandKind::Resume,
        CommandKind::Reload => v1::CommandKind::Reload,
        CommandKind::Shutdown => v1::CommandKind::Shutdown,
        CommandKind::Sysinfo => v1::CommandKind::Sysinfo,
    }
}
