//! The verdict on a channel, from its counts.

/// How many messages a channel has, and who is there for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Ready, and with no runner yet.
    pub unclaimed: u64,
    pub running: u64,
    pub scheduled: u64,
    /// Running on a runner that went silent.
    pub stuck: u64,
    pub runners_active: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Healthy,
    Warning,
    Critical,
}

/// Unclaimed jobs above this: warning.
const UNCLAIMED_WARNING: u64 = 100;
/// Unclaimed jobs above this: critical.
const UNCLAIMED_CRITICAL: u64 = 500;
/// Stuck jobs above this: critical; any: warning.
const STUCK_CRITICAL: u64 = 10;

/// The verdict, and one sentence for each thing that is wrong.
pub fn judge(counts: &Counts) -> (Verdict, Vec<String>) {
    let mut verdict = Verdict::Healthy;
    let mut alerts = Vec::new();
    let mut alert = |level: Verdict, sentence: String| {
        verdict = verdict.max(level);
        alerts.push(sentence);
    };
    if counts.unclaimed > UNCLAIMED_WARNING {
        let critical = counts.unclaimed > UNCLAIMED_CRITICAL;
        let level = if critical { Verdict::Critical } else { Verdict::Warning };
        alert(level, format!("High unclaimed count: {}", counts.unclaimed));
    }
    if counts.stuck > 0 {
        let level = if counts.stuck > STUCK_CRITICAL { Verdict::Critical } else { Verdict::Warning };
        alert(level, format!("Stuck jobs detected: {}", counts.stuck));
    }
    if counts.unclaimed + counts.running > 0 && counts.runners_active == 0 {
        alert(Verdict::Critical, "No active runners for channel with pending jobs".to_owned());
    }
    (verdict, alerts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(unclaimed: u64, stuck: u64, runners_active: u32) -> (Verdict, usize) {
        let (verdict, alerts) = judge(&Counts { unclaimed, stuck, runners_active, ..Counts::default() });
        (verdict, alerts.len())
    }

    #[test]
    fn thresholds_are_exclusive() {
        assert_eq!(verdict(100, 0, 1), (Verdict::Healthy, 0));
        assert_eq!(verdict(101, 0, 1), (Verdict::Warning, 1));
        assert_eq!(verdict(500, 0, 1), (Verdict::Warning, 1));
        assert_eq!(verdict(501, 0, 1), (Verdict::Critical, 1));
        assert_eq!(verdict(0, 10, 1), (Verdict::Warning, 1));
        assert_eq!(verdict(0, 11, 1), (Verdict::Critical, 1));
    }

    #[test]
    fn work_without_runners_is_critical() {
        assert_eq!(verdict(1, 0, 0), (Verdict::Critical, 1));
        assert_eq!(verdict(0, 0, 0), (Verdict::Healthy, 0));
    }
}
