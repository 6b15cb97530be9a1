/**
 * Waiting for facts.
 */
import { setTimeout as sleep } from "node:timers/promises";

const DEADLINE_MS = 20_000;

/** Asks until the answer is neither undefined nor false; fails naming what it waited for. */
export async function eventually<T>(
  what: string,
  ask: () => T | undefined | false | Promise<T | undefined | false>,
): Promise<T> {
  const deadline = performance.now() + DEADLINE_MS;
  for (;;) {
    const answer = await ask();
    if (answer !== undefined && answer !== false) return answer;
    if (performance.now() > deadline) throw new Error(`never came true: ${what}`);
    await sleep(20);
  }
}

/** A promise and the means to settle it. */
export function gate<T = void>(): { readonly opened: Promise<T>; readonly open: (value: T) => void } {
  let open!: (value: T) => void;
  const opened = new Promise<T>((resolve) => {
    open = resolve;
  });
  return { opened, open };
}
