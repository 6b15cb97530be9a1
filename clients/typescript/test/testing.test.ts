import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { test } from "node:test";

import { currentJob, type JobContext, type LogKind, Permanent, RawJson, RetryAfter } from "errand-client";
import { runFunction } from "errand-client/testing";

test("a function's result, metadata and log are told", async () => {
  const greet = async (job: JobContext<{ name: string }>): Promise<string> => {
    job.metadata["step"] = 1;
    job.addLog("greeting", "warn", { loud: true });
    await sleep(1);
    return `hello ${job.payload.name}`;
  };
  const told = await runFunction(greet, { name: "ada" }, { metadata: { seen: true } });
  assert.equal(told.status, "completed");
  assert.equal(told.result, "hello ada");
  assert.deepEqual(told.metadata, { seen: true, step: 1 });
  assert.deepEqual(told.logs, [{ kind: "warn", message: "greeting", meta: { loud: true } }]);
});

test("the payload is there parsed and as it was spelt", async () => {
  const text = '{ "n": 9007199254740993 }';
  const told = await runFunction((job) => new RawJson(JSON.stringify({ text: job.payloadText })), new RawJson(text));
  assert.deepEqual(told.result, { text });
});

test("a function without a result completes with null", async () => {
  assert.equal((await runFunction(() => undefined, {})).result, null);
});

test("a throw fails with its message, its stack and its causes", async () => {
  const told = await runFunction(() => {
    throw new Error("it broke", { cause: new Error("the cable") });
  }, {});
  assert.equal(told.status, "failed");
  assert.equal(told.error, "it broke");
  assert.match(told.stackTrace, /^Error: it broke\n\s+at [\s\S]*Caused by: Error: the cable/);
  assert.ok(!told.permanent);
});

test("anything may be thrown", async () => {
  const thrown = async (value: unknown): Promise<string> =>
    (
      await runFunction(() => {
        throw value;
      }, {})
    ).error;
  assert.equal(await thrown("a text"), "a text");
  assert.equal(await thrown({ code: 7 }), 'thrown: {"code":7}');
  assert.equal(await thrown(undefined), "thrown: undefined");
  assert.equal(await thrown(new RangeError("")), "RangeError");
});

test("Permanent and RetryAfter are told, also those of another copy of the package", async () => {
  const permanent = await runFunction(() => {
    throw new Permanent("never");
  }, {});
  assert.ok(permanent.permanent);
  const later = await runFunction(() => {
    throw new RetryAfter(1.5, "soon");
  }, {});
  assert.equal(later.retryAfterSeconds, 1.5);
  const foreign = await runFunction(() => {
    throw Object.assign(new Error("never"), { name: "Permanent" });
  }, {});
  assert.ok(foreign.permanent);
});

test("a result that is not JSON fails for good and says why", async () => {
  const told = await runFunction(() => ({ big: 1n }), {});
  assert.equal(told.status, "failed");
  assert.match(told.error, /^the result is not JSON: .*BigInt/);
  assert.ok(told.permanent);
  assert.match((await runFunction(() => () => 1, {})).error, /a function is no JSON value/);
});

test("returning after having seen the cancel request ends it canceled", async () => {
  const polls = async (job: JobContext): Promise<void> => {
    while (!job.cancelRequested) await sleep(1);
  };
  const keepsSignal = async ({ signal }: JobContext): Promise<string> => {
    while (!signal.aborted) await sleep(1);
    return "early";
  };
  const listens = (job: JobContext): Promise<void> =>
    new Promise((resolve) => {
      job.signal.addEventListener("abort", () => {
        resolve();
      });
    });
  const throws = async (job: JobContext): Promise<void> => {
    await sleep(60_000, undefined, { signal: job.signal });
  };
  for (const run of [polls, keepsSignal, listens, throws]) {
    const cancel = new AbortController();
    const running = runFunction<Record<string, unknown>, unknown>(run, {}, { cancel: cancel.signal });
    setTimeout(() => {
      cancel.abort();
    }, 5);
    assert.equal((await running).status, "canceled", run.name);
  }
});

test("a function that never looks at the cancel request ends as it would have", async () => {
  const cancel = AbortSignal.abort();
  assert.equal((await runFunction(() => "done", {}, { cancel })).status, "completed");
  const broken = () => {
    throw new Error("it broke");
  };
  assert.equal((await runFunction(broken, {}, { cancel })).status, "failed");
});

test("a log line never fails its job", async () => {
  const meta: Record<string, unknown> = {};
  meta["self"] = meta;
  const told = await runFunction((job) => {
    job.addLog("odd", "info", meta);
    job.addLog("kind", "shouting" as LogKind);
  }, {});
  assert.equal(told.status, "completed");
  assert.ok("unreadable_meta" in (told.logs[0]?.meta ?? {}));
});

test("metadata that cannot be reported is complained of in the log", async () => {
  const told = await runFunction((job) => {
    job.metadata = { text: "x".repeat(300_000) };
    return 1;
  }, {});
  assert.equal(told.status, "completed");
  assert.match(told.logs[0]?.message ?? "", /over 262144; it was not reported/);
});

test("the code under a function finds its job", async () => {
  const told = await runFunction(
    async (job) => {
      await sleep(1);
      return currentJob()?.id === job.id;
    },
    {},
    { traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" },
  );
  assert.equal(told.result, true);
  assert.equal(currentJob(), undefined);
});
