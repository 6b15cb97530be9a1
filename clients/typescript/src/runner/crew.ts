/**
 * The executions of a runner: starts what was assigned, stops what should stop, and hands on what they say.
 *
 * Everything leaves in batches, for a message to another thread costs far more than what is in it.
 */
import {
  type Assigned,
  type Ended,
  type Line,
  PROGRESS_BYTES_MAX,
  type Stop,
  type ToSession,
} from "../session/messages.js";
import type { JobContext } from "./context.js";
import { asJob } from "./current.js";
import { Execution, type Reporter } from "./execution.js";
import { failed } from "./failure.js";

/** A function whose payload nobody has looked at. */
export type AnyFunction = (job: JobContext<never>) => unknown;

/** Wraps every execution, e.g. to open a span. It has to return what `next` does. */
export type Around = (job: JobContext<unknown>, next: () => Promise<unknown>) => Promise<unknown>;

/** How long functions are started in one go before whatever else waits gets its turn. */
const TURN_MS = 10;
/** How long an ended execution may wait for others to be told with it. */
const TELL_WITHIN_MS = 5;
/** How often changed metadata is reported. */
const REPORT_EVERY_MS = 250;

/** See the module. */
export class Crew implements Reporter {
  readonly #functions: ReadonlyMap<string, AnyFunction>;
  readonly #around: Around | undefined;
  readonly #tell: (message: ToSession) => void;
  /** One counter, shared with the session: bytes of progress on their way. */
  readonly #progressBytes: Int32Array;
  /** Assigned and not started. */
  readonly #waiting = new Map<string, Assigned>();
  readonly #running = new Map<string, Execution>();
  readonly #watched = new Set<Execution>();
  #ended: Ended[] = [];
  #endedSince = 0;
  #turn: NodeJS.Immediate | undefined;
  #telling: NodeJS.Immediate | undefined;
  #reporting: NodeJS.Timeout | undefined;

  constructor(
    functions: ReadonlyMap<string, AnyFunction>,
    around: Around | undefined,
    progressBytes: SharedArrayBuffer,
    tell: (message: ToSession) => void,
  ) {
    this.#functions = functions;
    this.#around = around;
    this.#progressBytes = new Int32Array(progressBytes);
    this.#tell = tell;
  }

  /** Lines up jobs to be started. */
  assign(jobs: readonly Assigned[]): void {
    for (const job of jobs) this.#waiting.set(job.key, job);
  }

  /** Stops an execution; a job that was not started is not. */
  stop(key: string, how: Stop): void {
    if (this.#waiting.delete(key)) this.#end({ key, outcome: { kind: "canceled" }, metadataText: undefined });
    else this.#running.get(key)?.stop(how);
  }

  /** Starts what is lined up, for a while, and the rest in the turns to come. */
  startWaiting(): void {
    if (this.#turn !== undefined) return;
    const until = performance.now() + TURN_MS;
    for (const [key, assigned] of this.#waiting) {
      this.#waiting.delete(key);
      this.#start(assigned);
      if (performance.now() >= until) break;
    }
    if (this.#waiting.size === 0) return;
    this.#turn = setImmediate(() => {
      this.#turn = undefined;
      this.startWaiting();
    });
  }

  /** Stops reporting; what still executes is nobody's. */
  disband(): void {
    clearInterval(this.#reporting);
    clearImmediate(this.#turn);
    this.#waiting.clear();
    for (const execution of this.#running.values()) execution.stop("release");
  }

  report(key: string, metadataText: string | undefined, lines: readonly Line[]): boolean {
    let bytes = 64 + (metadataText?.length ?? 0);
    for (const { message, metaText } of lines) bytes += 64 + message.length + metaText.length;
    if (Atomics.add(this.#progressBytes, 0, bytes) + bytes > PROGRESS_BYTES_MAX) {
      Atomics.sub(this.#progressBytes, 0, bytes);
      return false;
    }
    this.#tell({ kind: "progress", progress: { key, metadataText, lines, bytes } });
    return true;
  }

  watch(execution: Execution): void {
    this.#watched.add(execution);
    this.#reporting ??= setInterval(() => {
      for (const watched of this.#watched) watched.report();
    }, REPORT_EVERY_MS);
  }

  #start(assigned: Assigned): void {
    const execution = new Execution(assigned, this);
    const { key } = assigned;
    const run = this.#functions.get(assigned.func);
    if (run === undefined) {
      const error = new Error(`this runner has no function ${assigned.func}`);
      this.#end({
        key,
        outcome: { ...failed(error, true), stackTrace: "" } as Ended["outcome"],
        metadataText: undefined,
      });
      return;
    }
    this.#running.set(key, execution);
    // What a function gets is typed by whoever wrote it; the payload is as the publisher sent it.
    const job = execution as JobContext<unknown> as JobContext<never>;
    const around = this.#around;
    const call =
      around === undefined
        ? () => run(job)
        : () =>
            around(
              execution,
              () =>
                new Promise((resolve) => {
                  resolve(run(job));
                }),
            );
    execution.start(
      () => asJob(execution, call),
      (ended) => {
        this.#running.delete(key);
        if (this.#watched.delete(execution) && this.#watched.size === 0) {
          clearInterval(this.#reporting);
          this.#reporting = undefined;
        }
        this.#end(ended);
      },
    );
  }

  #end(ended: Ended): void {
    const now = performance.now();
    if (this.#ended.length === 0) this.#endedSince = now;
    this.#ended.push(ended);
    if (now - this.#endedSince >= TELL_WITHIN_MS) this.#tellEnded();
    else
      this.#telling ??= setImmediate(() => {
        this.#tellEnded();
      });
  }

  #tellEnded(): void {
    clearImmediate(this.#telling);
    this.#telling = undefined;
    if (this.#ended.length === 0) return;
    const ended = this.#ended;
    this.#ended = [];
    this.#tell({ kind: "ended", ended });
  }
}
