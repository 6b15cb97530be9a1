/**
 * When to dial again: at once first, for the resume window is short, then ever slower, with jitter.
 */

const FIRST_MS = 50;
const CAP_MS = 5_000;
/** 50 ms doubled seven times passes the cap; the bound on the exponent only prevents an overflow. */
const DOUBLINGS_MAX = 16;

/** Jittered exponential backoff; the first attempt waits for nothing. */
export class Backoff {
  #attempts = 0;

  /** How long to wait before the next attempt; `chance` is evenly spread over 0 to 1. */
  nextMs(chance: number): number {
    const attempt = this.#attempts++;
    if (attempt === 0) return 0;
    const full = Math.min(FIRST_MS * 2 ** Math.min(attempt - 1, DOUBLINGS_MAX), CAP_MS);
    // Half fixed, half chance: runners of a dead node spread out, and none waits for nearly nothing.
    return full * (0.5 + chance / 2);
  }

  /** The connection held: the next attempt waits for nothing again. */
  reset(): void {
    this.#attempts = 0;
  }
}
