/**
 * Which job the code that is executing belongs to.
 */
import { AsyncLocalStorage } from "node:async_hooks";

import type { JobContext } from "./context.js";

const storage = new AsyncLocalStorage<JobContext<unknown>>();

/**
 * The job whose function called this, however deep down; undefined outside of one.
 *
 * For what is called in too many places to hand the job around: a logger, a database layer.
 */
export function currentJob(): JobContext<unknown> | undefined {
  return storage.getStore();
}

/** The trace context of the job whose function called this. */
export function currentTraceparent(): string | undefined {
  return storage.getStore()?.traceparent;
}

/** Calls `start` so that it, and all it leads to, belongs to `job`. */
export function asJob<Result>(job: JobContext<unknown>, start: () => Result): Result {
  return storage.run(job, start);
}
