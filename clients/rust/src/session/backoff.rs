//! When to dial again: at once first, for the resume window is short, then ever slower, with jitter.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const CAP: Duration = Duration::from_secs(5);

/// Jittered exponential backoff; the first attempt waits for nothing.
#[derive(Debug, Default)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// How long to wait before the next attempt; `chance` is evenly spread over 0.0 to 1.0.
    pub fn next_delay(&mut self, chance: f64) -> Duration {
        let attempt = self.attempts;
        self.attempts = attempt.saturating_add(1);
        if attempt == 0 {
            return Duration::ZERO;
        }
        // 50 ms doubled seven times passes the cap; the bound on the exponent only prevents an overflow.
        let full = FIRST.saturating_mul(1 << (attempt - 1).min(16)).min(CAP);
        // Half fixed, half chance: runners of a dead node spread out, and none waits for nearly nothing.
        full.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }

    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// A number evenly spread over 0.0 to 1.0, from the random bits of a UUID.
pub fn chance() -> f64 {
    let (_, low) = uuid::Uuid::new_v4().as_u64_pair();
    f64::from(low as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempt_is_immediate_and_the_last_is_capped() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..12).map(|_| backoff.next_delay(1.0)).collect();
        assert_eq!(delays[0], Duration::ZERO);
        assert_eq!(delays[1], FIRST);
        assert_eq!(delays[2], FIRST * 2);
        assert_eq!(delays[11], CAP);
    }

    #[test]
    fn chance_never_halves_a_delay_more_than_once() {
        let mut backoff = Backoff { attempts: 1 };
        assert_eq!(backoff.next_delay(0.0), FIRST / 2);
    }
}
