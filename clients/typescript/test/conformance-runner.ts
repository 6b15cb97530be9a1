/**
 * The runner that the conformance kit is played at: `errand conformance -- node build/test/conformance-runner.js`.
 */
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";

import { type JobContext, type LogKind, Permanent, RawJson, RetryAfter, Runner } from "errand-client";

const starts = new Map<string, number>();
let concurrent = 0;
let peak = 0;

function wait(seconds: number): Promise<void> {
  return sleep(seconds * 1_000);
}

const functions = {
  // As text: JavaScript would make other numbers of large ones.
  echo: (job: JobContext) => new RawJson(job.payloadText),
  no_result: () => undefined,
  many: (job: JobContext<{ index: number }>) => ({ index: job.payload.index }),
  describe: (job: JobContext) => ({
    job_id: job.id,
    func: job.func,
    channel: job.channel,
    attempt: job.attempt,
    max_retries: job.maxRetries,
    traceparent: job.traceparent === "" ? null : job.traceparent,
    deadline_ms: job.deadline === undefined ? null : job.deadline.getTime() - Date.now(),
  }),
  fail: (job: JobContext<{ message: string }>) => {
    throw new Error(job.payload.message);
  },
  fail_for_good: (job: JobContext<{ message: string }>) => {
    throw new Permanent(job.payload.message);
  },
  retry_after: (job: JobContext<{ seconds: number }>) => {
    if (job.attempt === 1) throw new RetryAfter(job.payload.seconds, "not yet");
    return { attempt: job.attempt };
  },
  sleep: async (job: JobContext<{ seconds: number }>) => {
    await wait(job.payload.seconds);
    return { slept: job.payload.seconds };
  },
  busy: (job: JobContext<{ seconds: number }>) => {
    const until = performance.now() + job.payload.seconds * 1_000;
    while (performance.now() < until);
    return { busy: job.payload.seconds };
  },
  wait_for_cancel: async (job: JobContext<{ seconds: number }>) => {
    await Promise.race([wait(job.payload.seconds), once(job.signal, "abort")]);
    return { waited: job.payload.seconds };
  },
  progress: async (job: JobContext<{ steps: number; pause: number }>) => {
    for (let step = 1; step <= job.payload.steps; step++) {
      job.metadata = { step, of: job.payload.steps };
      job.report();
      await wait(job.payload.pause);
    }
    return { steps: job.payload.steps };
  },
  log: (job: JobContext<{ lines: { kind: LogKind; message: string; meta: Record<string, unknown> }[] }>) => {
    for (const { kind, message, meta } of job.payload.lines) job.addLog(message, kind, meta);
    return { lines: job.payload.lines.length };
  },
  big_result: (job: JobContext<{ bytes: number }>) => ({ text: "x".repeat(job.payload.bytes) }),
  unicode: (job: JobContext<{ text: string }>) => {
    const { text } = job.payload;
    job.addLog(text);
    job.metadata = { text };
    return { text, code_points: Array.from(text).length };
  },
  crash: (job: JobContext<{ attempts: number }>) => {
    if (job.attempt <= job.payload.attempts) process.exit(70);
    return { attempt: job.attempt };
  },
  starts: async (job: JobContext<{ seconds: number }>) => {
    starts.set(job.id, (starts.get(job.id) ?? 0) + 1);
    await wait(job.payload.seconds);
    return { starts: starts.get(job.id) };
  },
  concurrency: async (job: JobContext<{ seconds: number }>) => {
    peak = Math.max(peak, ++concurrent);
    await wait(job.payload.seconds);
    concurrent -= 1;
    return { peak };
  },
};

const runner = new Runner({
  channels: (process.env["ERRAND_CHANNELS"] ?? "default").split(","),
  capacity: Number(process.env["ERRAND_CAPACITY"] ?? 10),
  onReload: () => undefined,
});
for (const [name, run] of Object.entries(functions)) runner.register(name, run as (job: JobContext) => unknown);
try {
  await runner.run();
  process.exit(0);
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exit(1);
}
