//! Who holds which job until when.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use tokio::time::Instant;

use crate::{model::Lease, queue::Lapsed};

#[derive(Clone)]
pub(super) struct Held {
    pub(super) holder: Arc<str>,
    pub(super) deadline: Instant,
    pub(super) accepted: bool,
}

#[derive(Default)]
pub(super) struct Leases {
    held: HashMap<Lease, Held>,
    by_deadline: BTreeSet<(Instant, Lease)>,
    by_holder: HashMap<Arc<str>, HashSet<Lease>>,
}

impl Leases {
    pub(super) fn put(&mut self, lease: Lease, held: Held) {
        self.remove(lease);
        self.by_deadline.insert((held.deadline, lease));
        self.by_holder.entry(held.holder.clone()).or_default().insert(lease);
        self.held.insert(lease, held);
    }

    pub(super) fn remove(&mut self, lease: Lease) -> Option<Held> {
        let held = self.held.remove(&lease)?;
        self.by_deadline.remove(&(held.deadline, lease));
        if let Some(leases) = self.by_holder.get_mut(&held.holder) {
            leases.remove(&lease);
            if leases.is_empty() {
                self.by_holder.remove(&held.holder);
            }
        }
        Some(held)
    }

    pub(super) fn of(&self, holder: &Arc<str>) -> Vec<Lease> {
        self.by_holder.get(holder).map(|leases| leases.iter().copied().collect()).unwrap_or_default()
    }

    pub(super) fn holder(&self, lease: Lease) -> Option<&Arc<str>> {
        self.held.get(&lease).map(|held| &held.holder)
    }

    /// Lets a holder's leases lapse at `latest`, those that would lapse before excepted.
    pub(super) fn shorten(&mut self, holder: &Arc<str>, latest: Instant) {
        for lease in self.of(holder) {
            if let Some(held) = self.held.get(&lease).cloned()
                && held.deadline > latest
            {
                self.put(lease, Held { deadline: latest, ..held });
            }
        }
    }

    pub(super) fn lapsed(&mut self, now: Instant, limit: usize) -> Vec<Lapsed> {
        let due: Vec<Lease> = self
            .by_deadline
            .iter()
            .take_while(|(deadline, _)| *deadline <= now)
            .take(limit)
            .map(|(_, lease)| *lease)
            .collect();
        due.into_iter()
            .filter_map(|lease| {
                let held = self.remove(lease)?;
                Some(Lapsed { lease, holder: held.holder, accepted: held.accepted })
            })
            .collect()
    }
}
