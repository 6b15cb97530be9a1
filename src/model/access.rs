//! Who may do what: THE policy table.
//!
//! [`Operation::rule`] has a row for every operation there is; nothing else decides permission. Which operation an RPC
//! is stands in [`Operation::of_rpc`], and a test walks every RPC of the contract and fails where one has no row.

use std::sync::Arc;

/// Somebody with a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub subject: Arc<str>,
    pub permissions: Vec<Permission>,
    /// The channels a runner is bound to; `None`: any.
    pub channels: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    ViewJobs,
    ManageJobs,
    RunJobs,
}

impl Permission {
    /// The name in a token's `permissions`; others mean nothing here.
    pub fn from_name(name: &str) -> Option<Permission> {
        match name {
            "view_jobs" => Some(Permission::ViewJobs),
            "manage_jobs" => Some(Permission::ManageJobs),
            "run_jobs" => Some(Permission::RunJobs),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Permission::ViewJobs => "view_jobs",
            Permission::ManageJobs => "manage_jobs",
            Permission::RunJobs => "run_jobs",
        }
    }
}

/// Something a caller may want to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    Publish,
    ReadJobs,
    SteerJobs,
    ReadHealth,
    ReadRunners,
    SteerRunners,
    RunJobs,
}

/// What an operation asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Any valid token; without `view_jobs`, only the caller's own jobs exist.
    Authenticated,
    /// This permission.
    Needs(Permission),
}

/// The caller lacks a permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Permission denied: {} required", .0.name())]
pub struct Denied(pub Permission);

impl Operation {
    pub fn rule(self) -> Rule {
        match self {
            Operation::Publish | Operation::ReadJobs => Rule::Authenticated,
            Operation::ReadHealth | Operation::ReadRunners => Rule::Needs(Permission::ViewJobs),
            Operation::SteerJobs | Operation::SteerRunners => Rule::Needs(Permission::ManageJobs),
            Operation::RunJobs => Rule::Needs(Permission::RunJobs),
        }
    }

    /// The operation behind an RPC, by its full name such as `errand.v1.Jobs/PublishJob`.
    pub fn of_rpc(name: &str) -> Option<Operation> {
        Some(match name {
            "errand.v1.Jobs/PublishJob"
            | "errand.v1.Jobs/PublishJobs"
            | "errand.v1.Jobs/PublishJobStream"
            | "errand.v1.Jobs/CloneJob" => Operation::Publish,
            "errand.v1.Jobs/GetJob"
            | "errand.v1.Jobs/GetJobStatus"
            | "errand.v1.Jobs/ListJobs"
            | "errand.v1.Jobs/ListJobEvents"
            | "errand.v1.Jobs/ListJobLogs"
            | "errand.v1.Jobs/WatchJobs" => Operation::ReadJobs,
            "errand.v1.Jobs/CancelJob" | "errand.v1.Jobs/RetryJob" | "errand.v1.Jobs/DeleteJob" => Operation::SteerJobs,
            "errand.v1.Runners/Attach" => Operation::RunJobs,
            "errand.v1.Runners/ListRunners" => Operation::ReadRunners,
            "errand.v1.Runners/PingRunner"
            | "errand.v1.Runners/ShutdownRunner"
            | "errand.v1.Runners/BroadcastCommand" => Operation::SteerRunners,
            "errand.v1.Health/GetChannelHealth" | "errand.v1.Health/GetSystemHealth" | "errand.v1.Health/GetStats" => {
                Operation::ReadHealth
            }
            _ => return None,
        })
    }
}

impl Caller {
    /// Whether the caller has `permission`, by itself or implied.
    pub fn has(&self, permission: Permission) -> bool {
        self.permissions.contains(&permission)
            || (permission == Permission::ViewJobs && self.permissions.contains(&Permission::ManageJobs))
    }

    pub fn may(&self, operation: Operation) -> Result<(), Denied> {
        match operation.rule() {
            Rule::Authenticated => Ok(()),
            Rule::Needs(permission) if self.has(permission) => Ok(()),
            Rule::Needs(permission) => Err(Denied(permission)),
        }
    }

    /// Whether jobs of `owner` exist for this caller.
    pub fn sees(&self, owner: &str) -> bool {
        *self.subject == *owner || self.has(Permission::ViewJobs)
    }

    /// Whether a runner with this token may take from `channel`.
    pub fn is_bound_to(&self, channel: &str) -> bool {
        self.channels.as_ref().is_none_or(|channels| channels.iter().any(|bound| bound == channel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(permissions: &[Permission]) -> Caller {
        Caller { subject: "ann".into(), permissions: permissions.to_vec(), channels: None }
    }

    #[test]
    fn managing_implies_viewing_but_not_running() {
        let manager = caller(&[Permission::ManageJobs]);
        assert!(manager.may(Operation::ReadHealth).is_ok());
        assert_eq!(manager.may(Operation::RunJobs), Err(Denied(Permission::RunJobs)));
        assert!(manager.sees("bob"));
    }

    #[test]
    fn a_bare_token_publishes_and_sees_its_own() {
        let ann = caller(&[]);
        assert!(ann.may(Operation::Publish).is_ok());
        assert!(ann.sees("ann") && !ann.sees("bob"));
        let denied = ann.may(Operation::SteerJobs).expect_err("a bare token may not cancel");
        assert_eq!(denied.to_string(), "Permission denied: manage_jobs required");
    }

    #[test]
    fn viewing_does_not_imply_managing() {
        assert_eq!(caller(&[Permission::ViewJobs]).may(Operation::SteerRunners), Err(Denied(Permission::ManageJobs)));
    }
}
