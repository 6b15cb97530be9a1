/**
 * Trying a job's function without a service.
 *
 * @packageDocumentation
 */
import { randomUUID } from "node:crypto";

import { type JsonObject, objectText, parsed, type RawJson } from "./json.js";
import type { LogKind } from "./log-kind.js";
import type { JobContext, JobFunction } from "./runner/context.js";
import { asJob } from "./runner/current.js";
import { Execution } from "./runner/execution.js";
import type { Assigned, Ended } from "./session/messages.js";

/** How the job is to look to its function. */
export interface RunOptions {
  readonly id?: string;
  readonly func?: string;
  readonly channel?: string;
  /** 1 unless given. */
  readonly attempt?: number;
  /** 3 unless given. */
  readonly maxRetries?: number;
  /** None unless given; it is not enforced. */
  readonly deadline?: Date;
  readonly traceparent?: string;
  readonly owner?: string;
  readonly priority?: number;
  readonly parentId?: string;
  /** What an earlier attempt reported. */
  readonly metadata?: JsonObject;
  /** Requests the job's cancellation when it fires. */
  readonly cancel?: AbortSignal;
}

/** A line that the function wrote. */
export interface TestLog {
  readonly kind: LogKind;
  readonly message: string;
  readonly meta: Record<string, unknown>;
}

/** What became of the job. */
export interface RunResult {
  readonly status: "completed" | "failed" | "canceled";
  /** What the service would keep: the result after it has been through JSON; null for nothing. */
  readonly result: unknown;
  /** Why it failed; empty where it did not. */
  readonly error: string;
  readonly stackTrace: string;
  /** True where the failure forbids another attempt. */
  readonly permanent: boolean;
  /** When the next attempt is to start, where the function chose. */
  readonly retryAfterSeconds: number | undefined;
  readonly metadata: Record<string, unknown>;
  readonly logs: readonly TestLog[];
}

/**
 * Executes a function as a runner would, and tells what the service would be told.
 *
 * @example
 * ```ts
 * const { status, result } = await runFunction(sendEmail, { to: "ada@example.com" });
 * assert.equal(status, "completed");
 * ```
 */
export async function runFunction<Payload, Result>(
  run: JobFunction<Payload, Result>,
  payload: (Payload & object) | RawJson,
  options: RunOptions = {},
): Promise<RunResult> {
  const logs: TestLog[] = [];
  const execution = new Execution(assigned(objectText("payload", payload), options), {
    report: (_key, _metadata, lines) => {
      for (const { kind, message, metaText } of lines) logs.push({ kind, message, meta: object(metaText) });
      return true;
    },
    watch: () => undefined,
  });
  const cancel = (): void => {
    execution.stop("cancel");
  };
  if (options.cancel?.aborted === true) cancel();
  options.cancel?.addEventListener("abort", cancel, { once: true });
  const ended = await new Promise<Ended>((resolve) => {
    // The payload is what the caller said it is, once it has been through JSON.
    const job = execution as JobContext<unknown> as JobContext<Payload>;
    execution.start(() => asJob(execution, () => run(job)), resolve);
  });
  options.cancel?.removeEventListener("abort", cancel);
  return { ...told(ended), metadata: object(ended.metadataText ?? metadataText(options)), logs };
}

function told({ outcome }: Ended): Omit<RunResult, "metadata" | "logs"> {
  const nothing = { result: null, error: "", stackTrace: "", permanent: false, retryAfterSeconds: undefined };
  switch (outcome.kind) {
    case "completed":
      return { ...nothing, status: "completed", result: parsed(outcome.resultText) ?? null };
    case "failed": {
      const { error, stackTrace, permanent, retryAfterSeconds } = outcome;
      return { ...nothing, status: "failed", error, stackTrace, permanent, retryAfterSeconds };
    }
    case "canceled":
      return { ...nothing, status: "canceled" };
  }
}

function assigned(payloadText: string, options: RunOptions): Assigned {
  return {
    key: "test",
    id: options.id ?? randomUUID().replaceAll("-", ""),
    func: options.func ?? "test",
    channel: options.channel ?? "default",
    attempt: options.attempt ?? 1,
    maxRetries: options.maxRetries ?? 3,
    deadlineMs: options.deadline?.getTime(),
    payloadText,
    metadataText: metadataText(options),
    traceparent: options.traceparent ?? "",
    owner: options.owner ?? "test",
    priority: options.priority ?? 0,
    parentId: options.parentId ?? "",
  };
}

function metadataText(options: RunOptions): string {
  return objectText("metadata", options.metadata ?? {});
}

function object(text: string): Record<string, unknown> {
  return JSON.parse(text) as Record<string, unknown>;
}
