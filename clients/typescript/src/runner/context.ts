/**
 * What a job's function gets, and how it may end other than by returning or throwing.
 */
import type { LogKind } from "../log-kind.js";

/** A function that executes jobs. What it returns is the job's result, and has to be a JSON value or nothing. */
export type JobFunction<Payload = Record<string, unknown>, Result = unknown> = (
  job: JobContext<Payload>,
) => Result | Promise<Result>;

/** One execution of a job, as its function sees it. */
export interface JobContext<Payload = Record<string, unknown>> {
  /** 32 hex digits. The same for every attempt: key by it what must not happen twice. */
  readonly id: string;
  readonly func: string;
  readonly channel: string;
  /** 1 in the first execution. */
  readonly attempt: number;
  /** Retries after the first execution. */
  readonly maxRetries: number;
  /** When the service ends this execution; undefined where it has no limit. By this machine's clock. */
  readonly deadline: Date | undefined;
  /** W3C trace context of the publisher; empty where it sent none. */
  readonly traceparent: string;
  /** Subject of the token that published the job. */
  readonly owner: string;
  /** Higher went first. */
  readonly priority: number;
  /** The broadcast job that this one is a part of; empty for others. */
  readonly parentId: string;

  /** The payload, by `JSON.parse`; parsed when it is first asked for. */
  readonly payload: Payload;
  /** The payload as the publisher spelt it, with every digit of its numbers. */
  readonly payloadText: string;

  /**
   * The job's metadata, a JSON object. Change it at will: what it says is reported while the function runs, and for good
   * with its end. An earlier attempt's is there at the start.
   */
  metadata: Record<string, unknown>;

  /**
   * Fires when the execution should stop: on a cancel request, at the time limit, when the lease is lost, and when the
   * runner leaves at once. Its reason is a {@link JobStopped}. Hand it to `fetch` and the like.
   */
  readonly signal: AbortSignal;
  /**
   * True once somebody asked for the job's cancellation. A function that sees this or the signal and returns, or throws
   * the signal's reason, ends the job canceled; one that never looks ends it as it would have.
   */
  readonly cancelRequested: boolean;

  /** Adds a line to the job's log. Costs little and never waits; lines beyond what can be sent are dropped and counted. */
  addLog(message: string, kind?: LogKind, meta?: Readonly<Record<string, unknown>>): void;

  /** Reports the metadata at once, in place of within a quarter of a second; also from a function that never gives way. */
  report(): void;
}

/** Why an execution should stop. */
export type StopReason = "canceled" | "timed out" | "lease lost" | "leaving";

const STOP_SENTENCES: Readonly<Record<StopReason, string>> = {
  canceled: "the job's cancellation was asked for",
  "timed out": "the job's time limit is over",
  "lease lost": "the job is no longer this runner's",
  leaving: "the runner leaves at once",
};

/** The reason of {@link JobContext.signal}. */
export class JobStopped extends Error {
  /** As everything that means it bears this name, code that takes any abort takes this one. */
  override readonly name = "AbortError";
  readonly reason: StopReason;

  constructor(reason: StopReason) {
    super(STOP_SENTENCES[reason]);
    this.reason = reason;
  }
}

/**
 * Throw it to fail a job for good, whatever is left of its retries.
 *
 * @example
 * ```ts
 * if (!isAddress(job.payload.to)) throw new Permanent(`${job.payload.to} is no address`);
 * ```
 */
export class Permanent extends Error {
  override readonly name = "Permanent";
}

/**
 * Throw it to fail an attempt and choose when the next one starts, in place of the backoff.
 *
 * @example
 * ```ts
 * if (response.status === 429) throw new RetryAfter(30, "the provider is busy");
 * ```
 */
export class RetryAfter extends Error {
  override readonly name = "RetryAfter";
  /** From the failure to the next attempt. */
  readonly seconds: number;

  constructor(seconds: number, message = `retry after ${seconds} s`, options?: ErrorOptions) {
    super(message, options);
    if (!(seconds >= 0 && seconds <= SECONDS_MAX))
      throw new RangeError("seconds must be 0 or more, and within 100 years");
    this.seconds = seconds;
  }
}

/** What the service takes: 100 years of 365 days. */
const SECONDS_MAX = 100 * 365 * 24 * 3600;
