//! When a failed attempt is tried again.

use std::time::Duration;

/// The wait before retry `k` (from 1): `min(base^k, max)` seconds, times 0.8 to 1.2 as `roll` chooses.
///
/// `roll` is any 64 random bits; the same bits give the same wait.
pub fn backoff(base: f64, max_seconds: u32, k: u32, roll: u64) -> Duration {
    let exponent = i32::try_from(k).unwrap_or(i32::MAX);
    let wait = base.powi(exponent).min(f64::from(max_seconds)).max(0.0);
    // 53 bits fill a double's mantissa exactly: a uniform number in 0..1.
    let unit = (roll >> 11) as f64 / (1u64 << 53) as f64;
    Duration::from_secs_f64(wait * (0.8 + 0.4 * unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_by_the_base_until_the_cap() {
        let middle = u64::MAX / 2;
        let seconds: Vec<u64> = (1..=5).map(|k| backoff(2.0, 10, k, middle).as_secs_f64().round() as u64).collect();
        assert_eq!(seconds, [2, 4, 8, 10, 10]);
    }

    #[test]
    fn jitter_spans_a_fifth_to_each_side() {
        assert_eq!(backoff(2.0, 3600, 1, 0).as_millis(), 1600);
        assert_eq!(backoff(2.0, 3600, 1, u64::MAX).as_millis(), 2400);
    }

    #[test]
    fn enormous_exponents_meet_the_cap() {
        assert!(backoff(1e300, 3600, u32::MAX, u64::MAX) <= Duration::from_secs(4320));
    }
}
