import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import {
  Client,
  ErrandError,
  type Job,
  type JobContext,
  JobStopped,
  Permanent,
  RawJson,
  RetryAfter,
  Runner,
  type RunnerOptions,
} from "errand-client";

import { QUICK, Service } from "./service.js";
import { eventually, gate } from "./waiting.js";

const TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

let service: Service;
let client: Client;
let channels = 0;

before(async () => {
  service = await Service.start(...QUICK);
  client = new Client({ servers: service.url, token: await service.operator() });
});
after(async () => {
  client.close();
  await service.remove();
});

type Functions = Readonly<Record<string, (job: JobContext) => unknown>>;

interface Work {
  readonly runner: Runner;
  readonly channel: string;
  readonly publish: (func: string, payload?: object, options?: object) => Promise<Job>;
  /** Publishes a job and waits for its end. */
  readonly run: (func: string, payload?: object, options?: object) => Promise<Job>;
}

/** A runner with these functions on a channel of its own. */
async function work(functions: Functions, options: RunnerOptions = {}): Promise<Work> {
  const channel = `c${++channels}`;
  const token = await service.operator();
  const runner = new Runner({ servers: service.url, token, channels: [channel], log: () => undefined, ...options });
  for (const [name, run] of Object.entries(functions)) runner.register(name, run);
  await runner.start();
  const publish = (func: string, payload = {}, options = {}) => client.publish(func, payload, { channel, ...options });
  return {
    runner,
    channel,
    publish,
    run: async (...args) => client.wait((await publish(...args)).id, { timeoutMs: 20_000 }),
  };
}

async function replyTo(command: string, runner: Runner): Promise<Record<string, unknown>> {
  const answer = await service.rest("POST", "/runners/broadcast", { command, timeout: 5 });
  const replies = Object.values(answer).find(Array.isArray) as Record<string, unknown>[];
  const reply = replies.find((reply) => reply["runner_id"] === runner.runnerId);
  assert.ok(reply, `${runner.runnerId} did not reply to ${command}: ${JSON.stringify(answer)}`);
  return reply;
}

function statusOf(jobId: string): Promise<string> {
  return client.get(jobId).then((job) => job.status);
}

test("a function's result is the job's, with every digit where it is text", async () => {
  const { runner, run } = await work({
    echo: (job) => new RawJson(job.payloadText),
    wait: async (job) => {
      await sleep(5);
      return { attempt: job.attempt, func: job.func, channel: job.channel, id: job.id };
    },
  });
  const echoed = await client.wait(
    (await client.publish("echo", new RawJson('{"n":9007199254740993}'), { channel: `c${channels}` })).id,
  );
  assert.equal(echoed.resultText, '{"n":9007199254740993}');
  const job = await run("wait");
  assert.deepEqual(job.result, { attempt: 1, func: "wait", channel: job.channel, id: job.id });
  assert.equal(job.runnerId, runner.runnerId);
  await runner.drain();
});

test("a throw fails the job with its stack, and for good where it is Permanent", async () => {
  const { runner, run } = await work({
    broken: () => {
      throw new Error("it broke");
    },
    hopeless: () => Promise.reject(new Permanent("no such address")),
  });
  const broken = await run("broken", {}, { maxRetries: 0 });
  assert.deepEqual([broken.status, broken.lastError], ["failed", "it broke"]);
  assert.match(broken.stackTrace, /Error: it broke\n\s+at .*runner\.test/);
  const hopeless = await run("hopeless", {}, { maxRetries: 9 });
  assert.deepEqual([hopeless.status, hopeless.attempt, hopeless.lastError], ["failed", 1, "no such address"]);
  await runner.drain();
});

test("RetryAfter chooses the time of the next attempt", async () => {
  const { runner, run } = await work({
    busy: (job) => {
      if (job.attempt === 1) throw new RetryAfter(0.2, "not yet");
      return job.attempt;
    },
  });
  // The backoff alone would take ten minutes.
  const job = await run("busy", {}, { backoffBase: 600 });
  assert.deepEqual([job.status, job.result], ["completed", 2]);
  await runner.drain();
});

test("a function that nobody registered fails for good", async () => {
  const { runner, run } = await work({ known: () => 1 });
  const job = await run("toString", {}, { maxRetries: 5 });
  assert.deepEqual([job.status, job.attempt], ["failed", 1]);
  assert.match(job.lastError, /no function toString/);
  await runner.drain();
});

test("metadata and log lines are there while the function runs", async () => {
  const done = gate();
  const { runner, publish } = await work({
    slow: async (job) => {
      job.metadata["step"] = 1;
      job.addLog("begun", "warn", { step: 1 });
      await done.opened;
      job.metadata["step"] = 2;
    },
  });
  const { id } = await publish("slow");
  await eventually("step 1 is reported", async () => (await client.get(id)).metadata["step"] === 1);
  const line = await eventually("the line is kept", async () => (await client.logs(id)).logs[0]);
  assert.deepEqual([line.message, line.kind, line.meta], ["begun", "warn", { step: 1 }]);
  done.open();
  assert.deepEqual((await client.wait(id)).metadata, { step: 2 });
  await runner.drain();
});

test("a thousand lines arrive, in order", async () => {
  const { runner, run } = await work({
    chatty: (job) => {
      for (let index = 0; index < 1_000; index++) job.addLog(`line ${index}`);
    },
  });
  const { id } = await run("chatty");
  const { logs } = await client.logs(id, { pageSize: 1_000 });
  assert.deepEqual(
    logs.map(({ message }) => message),
    Array.from({ length: 1_000 }, (_, index) => `line ${index}`),
  );
  await runner.drain();
});

test("a cancel request reaches the function", async () => {
  const reasons: unknown[] = [];
  const { runner, publish } = await work({
    patient: async (job) => {
      await new Promise((resolve) => {
        job.signal.addEventListener("abort", resolve);
      });
      reasons.push(job.signal.reason, job.cancelRequested);
    },
  });
  const { id } = await publish("patient");
  await eventually("it runs", async () => (await statusOf(id)) === "running");
  await client.cancel(id);
  assert.equal((await client.wait(id)).status, "canceled");
  assert.ok(reasons[0] instanceof JobStopped);
  assert.deepEqual([reasons[0].reason, reasons[1]], ["canceled", true]);
  await runner.drain();
});

test("the time limit reaches the function, which knew its deadline", async () => {
  const stopped = gate<{ reason: string; left: number }>();
  const { runner, run } = await work({
    endless: async (job) => {
      const left = (job.deadline?.getTime() ?? 0) - Date.now();
      await sleep(60_000, undefined, { signal: job.signal }).catch(() => undefined);
      stopped.open({ reason: (job.signal.reason as JobStopped).reason, left });
    },
  });
  const job = await run("endless", {}, { maxExecSeconds: 1, maxRetries: 0 });
  assert.equal(job.status, "failed");
  const { reason, left } = await stopped.opened;
  assert.equal(reason, "timed out");
  assert.ok(left > 0 && left <= 1_000);
  await runner.drain();
});

test("a function that blocks its thread for longer than a lease keeps all of them", async () => {
  const { runner, publish } = await work({
    // Twice the ttl of a lease, without giving way once.
    busy: (job) => {
      job.addLog("computing");
      const until = performance.now() + 6_000;
      while (performance.now() < until);
      return job.attempt;
    },
    quick: (job) => job.attempt,
  });
  const busy = await publish("busy");
  const others = await Promise.all(Array.from({ length: 5 }, () => publish("quick")));
  const jobs = await Promise.all([busy, ...others].map(({ id }) => client.wait(id, { timeoutMs: 20_000 })));
  assert.deepEqual(
    jobs.map((job) => [job.status, job.result]),
    jobs.map(() => ["completed", 1]),
  );
  for (const { id } of jobs) {
    const events = (await client.events(id)).map(({ event }) => event);
    assert.equal(events.filter((event) => event === "claimed" || event === "running").length, 1, events.join());
  }
  await runner.drain();
});

test("no more than the capacity runs at once", async () => {
  let running = 0;
  let peak = 0;
  const { runner, publish } = await work(
    {
      counted: async () => {
        peak = Math.max(peak, ++running);
        await sleep(20);
        running -= 1;
      },
    },
    { capacity: 3 },
  );
  const jobs = await Promise.all(Array.from({ length: 12 }, () => publish("counted")));
  await Promise.all(jobs.map(({ id }) => client.wait(id)));
  assert.equal(peak, 3);
  await runner.drain();
});

test("the trace context goes from the publisher to the function, and on to what it publishes", async () => {
  const { runner, publish, channel } = await work({
    outer: async (job) => [job.traceparent, (await client.publish("inner", {}, { channel })).id],
    inner: (job) => job.traceparent,
  });
  const { id } = await publish("outer", {}, { traceparent: TRACEPARENT });
  const [seen, inner] = await client.result<string[]>(id);
  assert.equal(seen, TRACEPARENT);
  assert.equal(await client.result(inner ?? ""), TRACEPARENT);
  await runner.drain();
});

test("every execution is wrapped by what the runner was given", async () => {
  const wrapped: string[] = [];
  const around: RunnerOptions["around"] = async (job, next) => {
    wrapped.push(`${job.func} ${job.traceparent}`);
    return next();
  };
  const { runner, run } = await work(
    {
      good: () => 1,
      bad: () => {
        throw new Error("no");
      },
    },
    { around },
  );
  assert.equal((await run("good", {}, { traceparent: TRACEPARENT })).result, 1);
  assert.equal((await run("bad", {}, { maxRetries: 0 })).lastError, "no");
  assert.equal(wrapped[0], `good ${TRACEPARENT}`);
  assert.equal(wrapped.length, 2);
  await runner.drain();
});

test("commands are answered", async () => {
  const { runner } = await work({});
  assert.equal((await replyTo("status", runner))["capacity"], 10);
  const ping = await service.rest("POST", "/runners/ping", { runner_id: runner.runnerId, timeout: 5 });
  assert.equal(ping["responsive"], true);
  await runner.drain();
});

test("reload is carried out by the runner's own callback, and its failure is told", async () => {
  let reloads = 0;
  const onReload = (): void => {
    reloads += 1;
    if (reloads === 2) throw new Error("the file is gone");
  };
  const { runner } = await work({}, { onReload });
  assert.equal((await replyTo("reload", runner))["reloaded"], true);
  assert.match(JSON.stringify(await replyTo("reload", runner)), /the file is gone/);
  await runner.drain();
});

test("a paused runner takes nothing until it is resumed", async () => {
  const { runner, publish } = await work({ quick: () => 1 });
  await service.rest("POST", "/runners/broadcast", { command: "pause", timeout: 5 });
  const { id } = await publish("quick");
  assert.equal((await replyTo("status", runner))["paused"], true);
  assert.equal(await statusOf(id), "pending");
  await service.rest("POST", "/runners/broadcast", { command: "resume", timeout: 5 });
  assert.equal((await client.wait(id)).status, "completed");
  runner.pause();
  await eventually("the pause is known", async () => (await replyTo("status", runner))["paused"] === true);
  const second = await publish("quick");
  assert.equal(await statusOf(second.id), "pending");
  runner.resume();
  assert.equal((await client.wait(second.id)).status, "completed");
  await runner.drain();
});

test("a drain finishes what runs and takes nothing more", async () => {
  const done = gate();
  const { runner, publish } = await work({ slow: () => done.opened }, { capacity: 1 });
  const first = await publish("slow");
  await eventually("it runs", async () => (await statusOf(first.id)) === "running");
  const second = await publish("slow");
  const drained = runner.drain();
  done.open();
  await drained;
  assert.equal(await statusOf(first.id), "completed");
  assert.equal(await statusOf(second.id), "pending");
});

test("a release hands back what runs, at no cost to its attempts", async () => {
  const { runner, publish, channel } = await work({ deaf: () => new Promise(() => undefined) });
  const { id } = await publish("deaf");
  await eventually("it runs", async () => (await statusOf(id)) === "running");
  await runner.release();
  await eventually("it is pending again", async () => (await statusOf(id)) === "pending");
  const other = new Runner({ servers: service.url, token: await service.operator(), channels: [channel] });
  await other.register("deaf", (job) => job.attempt).start();
  assert.equal(await client.result(id), 1);
  await other.drain();
});

test("the service's own shutdown ends a runner", async () => {
  const { runner, run } = await work({ quick: () => 1 });
  assert.equal((await run("quick")).status, "completed");
  await service.rest("POST", "/runners/shutdown", { runner_id: runner.runnerId, graceful: true });
  await runner.closed;
});

test("a runner that the service refuses says why", async () => {
  const options = { servers: service.url, token: await service.token("stranger"), channels: ["x"] };
  const runner = new Runner(options);
  await assert.rejects(runner.start(), (error) => {
    assert.ok(error instanceof ErrandError);
    assert.equal(error.code, "PERMISSION_DENIED");
    return true;
  });
  await assert.rejects(runner.closed, /run_jobs/);
  await assert.rejects(new Runner({ ...options, token: "nonsense" }).run(), /[Ii]nvalid token/);
});

test("settings that cannot be are refused at once", () => {
  assert.throws(() => new Runner({ capacity: 0 }), /capacity must be/);
  assert.throws(() => new Runner({ channels: [] }), /at least one channel/);
  assert.throws(() => new Runner({ runnerId: "a b" }), /runnerId must be/);
  const runner = new Runner();
  assert.throws(() => runner.register("a", () => 1).register("a", () => 2), /registered already/);
});

test("work goes on after the service was killed, and nothing is done twice", async () => {
  const own = await Service.start(...QUICK);
  const token = await own.operator();
  const owner = new Client({ servers: own.url, token });
  const done = gate();
  let starts = 0;
  const runner = new Runner({ servers: own.url, token, channels: ["kept"], log: () => undefined });
  runner.register("slow", async () => {
    starts += 1;
    await done.opened;
    return "kept";
  });
  await runner.start();
  const { id } = await owner.publish("slow", {}, { channel: "kept" });
  await eventually("it runs", async () => (await owner.get(id)).status === "running");
  await own.stop("SIGKILL");
  // It ends while there is nobody to tell.
  done.open();
  await own.start();
  const job = await owner.wait(id, { timeoutMs: 20_000 });
  assert.deepEqual([job.status, job.result, job.attempt, starts], ["completed", "kept", 1, 1]);
  await runner.drain();
  owner.close();
  await own.remove();
});

test("a broadcast job runs once on every runner", async () => {
  const ran: string[] = [];
  const first = await work({ everywhere: () => ran.push("first") });
  const second = new Runner({ servers: service.url, token: await service.operator(), channels: [first.channel] });
  await second.register("everywhere", () => ran.push("second")).start();
  assert.equal((await first.run("everywhere", {}, { broadcast: true })).status, "completed");
  assert.deepEqual(ran.sort(), ["first", "second"]);
  await Promise.all([first.runner.drain(), second.drain()]);
});
