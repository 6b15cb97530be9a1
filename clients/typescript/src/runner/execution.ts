/**
 * One execution on the thread of the functions: what its function sees, and how it ended.
 */
import { getEventListeners } from "node:events";

import { objectText, parsedObject, resultText } from "../json.js";
import type { LogKind } from "../log-kind.js";
import type { Assigned, Ended, Line, Outcome, Stop } from "../session/messages.js";
import { type JobContext, JobStopped, type StopReason } from "./context.js";
import { failed } from "./failure.js";

/** Where an execution's progress goes. False where there is no room. */
export interface Reporter {
  report(key: string, metadataText: string | undefined, lines: readonly Line[]): boolean;
  /** The metadata was asked for, and so may change from here on. */
  watch(execution: Execution): void;
}

/** The longest log message, in characters; the service cuts at as many bytes. */
const LOG_MESSAGE_MAX = 16 * 1024;
/** The largest metadata that the service takes, in bytes. */
const METADATA_MAX = 256 * 1024;

const REASONS: Readonly<Record<Stop, StopReason>> = {
  cancel: "canceled",
  expire: "timed out",
  lose: "lease lost",
  release: "leaving",
};

/** See {@link JobContext}. */
export class Execution implements JobContext<unknown> {
  readonly id: string;
  readonly func: string;
  readonly channel: string;
  readonly attempt: number;
  readonly maxRetries: number;
  readonly traceparent: string;
  readonly owner: string;
  readonly priority: number;
  readonly parentId: string;
  readonly payloadText: string;
  readonly #assigned: Assigned;
  readonly #reporter: Reporter;
  #payload: unknown;
  #hasPayload = false;
  #metadata: Record<string, unknown> | undefined;
  /** The metadata's text as the service has it. */
  #reported = "";
  #complained = false;
  #controller: AbortController | undefined;
  #stopped: Stop | undefined;
  /** Whether the function learnt that it should stop. */
  #sawStop = false;
  #linesDropped = 0;

  constructor(assigned: Assigned, reporter: Reporter) {
    this.#assigned = assigned;
    this.#reporter = reporter;
    this.id = assigned.id;
    this.func = assigned.func;
    this.channel = assigned.channel;
    this.attempt = assigned.attempt;
    this.maxRetries = assigned.maxRetries;
    this.traceparent = assigned.traceparent;
    this.owner = assigned.owner;
    this.priority = assigned.priority;
    this.parentId = assigned.parentId;
    this.payloadText = assigned.payloadText;
  }

  get deadline(): Date | undefined {
    return this.#assigned.deadlineMs === undefined ? undefined : new Date(this.#assigned.deadlineMs);
  }

  get payload(): unknown {
    if (!this.#hasPayload) {
      this.#payload = parsedObject(this.payloadText);
      this.#hasPayload = true;
    }
    return this.#payload;
  }

  get metadata(): Record<string, unknown> {
    return this.#watchMetadata();
  }

  set metadata(metadata: Record<string, unknown>) {
    this.#watchMetadata();
    this.#metadata = metadata;
  }

  get signal(): AbortSignal {
    if (this.#controller === undefined) {
      this.#controller = new AbortController();
      this.#tellLooks(this.#controller.signal);
      if (this.#stopped !== undefined) this.#abort(this.#controller, this.#stopped);
    }
    this.#looks();
    return this.#controller.signal;
  }

  get cancelRequested(): boolean {
    this.#looks();
    return this.#stopped === "cancel";
  }

  addLog(message: string, kind: LogKind = "info", meta: Readonly<Record<string, unknown>> = {}): void {
    const line = { at: new Date(), kind, message: message.slice(0, LOG_MESSAGE_MAX), metaText: metaText(meta) };
    if (this.#linesDropped > 0) {
      const dropped: Line = {
        at: line.at,
        kind: "warn",
        message: `${this.#linesDropped} log lines were dropped here: more than could be sent`,
        metaText: "{}",
      };
      if (!this.#reporter.report(this.#assigned.key, undefined, [dropped, line])) this.#linesDropped += 1;
      else this.#linesDropped = 0;
    } else if (!this.#reporter.report(this.#assigned.key, undefined, [line])) {
      this.#linesDropped = 1;
    }
  }

  report(): void {
    const text = this.#metadataText();
    if (text === undefined || text === this.#reported) return;
    if (this.#reporter.report(this.#assigned.key, text, [])) this.#reported = text;
  }

  /** Asks the function to stop; the first reason stays the signal's. */
  stop(how: Stop): void {
    this.#stopped ??= how;
    if (this.#controller === undefined || this.#controller.signal.aborted) return;
    if (getEventListeners(this.#controller.signal, "abort").length > 0) this.#sawStop = true;
    this.#abort(this.#controller, how);
  }

  /** Calls the function, and `done` once when it has ended. */
  start(call: () => unknown, done: (ended: Ended) => void): void {
    try {
      const value = call();
      if (!isThenable(value)) {
        done(this.#returned(value));
        return;
      }
      value.then(
        (settled) => {
          done(this.#returned(settled));
        },
        (error: unknown) => {
          done(this.#threw(error));
        },
      );
    } catch (error) {
      done(this.#threw(error));
    }
  }

  #returned(value: unknown): Ended {
    // It returned early, and what it returned is not what the job is for. Where the runner leaves, this is handed back.
    if (this.#stopped !== undefined && this.#sawStop) return this.#ended({ kind: "canceled" });
    try {
      return this.#ended({ kind: "completed", resultText: resultText(value) });
    } catch (error) {
      // The function did its work; to do it again would not make JSON of it.
      const reason = error instanceof Error ? error.message : String(error);
      return this.#ended(failed(new TypeError(`the result is not JSON: ${reason}`, { cause: error }), true));
    }
  }

  #threw(error: unknown): Ended {
    const yielded = this.#stopped !== undefined && error instanceof Error && error.name === "AbortError";
    return this.#ended(yielded ? { kind: "canceled" } : failed(error));
  }

  #ended(outcome: Outcome): Ended {
    const text = this.#metadataText();
    // Repeated although it may have been reported: reports may get lost, results do not.
    const hasChanged = text !== undefined && text !== this.#assigned.metadataText;
    return { key: this.#assigned.key, outcome, metadataText: hasChanged ? text : undefined };
  }

  #metadataText(): string | undefined {
    if (this.#metadata === undefined) return undefined;
    try {
      const text = objectText("metadata", this.#metadata);
      const bytes = Buffer.byteLength(text);
      if (bytes <= METADATA_MAX) return text;
      this.#complain(`the metadata has ${bytes} bytes, over ${METADATA_MAX}`);
    } catch (error) {
      this.#complain(`the metadata is no JSON object: ${error instanceof Error ? error.message : String(error)}`);
    }
    return undefined;
  }

  #complain(about: string): void {
    if (this.#complained) return;
    this.#complained = true;
    this.addLog(`${about}; it was not reported`, "error");
  }

  /** From the first time that it is asked for, it may change at any moment. */
  #watchMetadata(): Record<string, unknown> {
    if (this.#metadata === undefined) {
      this.#metadata = parsedObject(this.#assigned.metadataText);
      this.#reported = JSON.stringify(this.#metadata);
      this.#reporter.watch(this);
    }
    return this.#metadata;
  }

  #looks(): void {
    if (this.#stopped !== undefined) this.#sawStop = true;
  }

  #abort(controller: AbortController, how: Stop): void {
    controller.abort(new JobStopped(REASONS[how]));
  }

  /** A function that keeps the signal and only looks whether it has fired has seen it as well. */
  #tellLooks(signal: AbortSignal): void {
    const aborted = Object.getOwnPropertyDescriptor(AbortSignal.prototype, "aborted");
    Object.defineProperty(signal, "aborted", {
      configurable: true,
      get: () => {
        this.#looks();
        return aborted?.get?.call(signal) as boolean;
      },
    });
  }
}

function isThenable(value: unknown): value is PromiseLike<unknown> {
  return typeof value === "object" && value !== null && "then" in value && typeof value.then === "function";
}

function metaText(meta: Readonly<Record<string, unknown>>): string {
  try {
    return objectText("meta", meta);
  } catch (error) {
    // A line must not fail the job that it tells about.
    return JSON.stringify({ unreadable_meta: error instanceof Error ? error.message : String(error) });
  }
}
