//! All scenarios, a file a subject. Those of `results` to `tls` play the real service; those of `words` to `away` a
//! scripted one.

mod away;
mod cancel;
mod control;
mod failures;
mod leases;
mod leaving;
mod load;
mod network;
mod reports;
mod results;
mod stops;
mod tls;
mod words;

use crate::scenario::Scenario;

/// In the order in which they are played.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    let service = [
        results::SCENARIOS,
        failures::SCENARIOS,
        reports::SCENARIOS,
        cancel::SCENARIOS,
        load::SCENARIOS,
        control::SCENARIOS,
        leaving::SCENARIOS,
        network::SCENARIOS,
        tls::SCENARIOS,
    ];
    let script = [words::SCENARIOS, leases::SCENARIOS, stops::SCENARIOS, away::SCENARIOS];
    service.into_iter().chain(script).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_there_once() {
        let mut names: Vec<_> = all().map(|scenario| scenario.name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
