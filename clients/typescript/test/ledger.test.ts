import assert from "node:assert/strict";
import { test } from "node:test";

import { LogKind } from "#dist/gen/errand/v1/job.js";
import { Backoff } from "#dist/session/backoff.js";
import { Ledger, type Said, type WireOutcome } from "#dist/session/ledger.js";
import { leaseKey } from "#dist/session/messages.js";

function lease(jobId: string): { jobId: string; attempt: number } {
  return { jobId, attempt: 1 };
}

function key(jobId: string): string {
  return leaseKey(jobId, 1);
}

function receipt(jobId: string): { lease: { jobId: string; attempt: number }; accepted: boolean } {
  return { lease: lease(jobId), accepted: true };
}

const COMPLETED: WireOutcome = { $case: "completed", value: { resultJson: "1" } };
const FAILED: WireOutcome = {
  $case: "failed",
  value: { error: "no", stackTrace: "", permanent: false, retryAfter: undefined },
};

function said(ledger: Ledger): Said[] {
  const messages: Said[] = [];
  for (let next = ledger.nextOutgoing(); next !== undefined; next = ledger.nextOutgoing()) messages.push(next);
  return messages;
}

function outcomes(messages: readonly Said[]): string[] {
  return messages
    .flatMap((message) => (message.$case === "results" ? message.value.results : []))
    .map((result) => `${result.lease?.jobId} ${result.outcome?.$case}`);
}

function heartbeats(messages: readonly Said[]): string[][] {
  return messages.flatMap((message) =>
    message.$case === "heartbeat" ? [message.value.leases.map(({ jobId }) => jobId)] : [],
  );
}

test("a lease is named from its assignment to its receipt", () => {
  const ledger = new Ledger(2);
  assert.equal(ledger.assign(lease("a")), "start");
  assert.deepEqual(heartbeats(said(ledger)), [["a"]]);
  ledger.finished(key("a"), COMPLETED, undefined);
  ledger.heartbeatDue();
  assert.deepEqual(heartbeats(said(ledger)), [["a"]]);
  ledger.receipted([receipt("a")]);
  ledger.heartbeatDue();
  assert.deepEqual(heartbeats(said(ledger)), [[]]);
});

test("accepting names only what is new", () => {
  const ledger = new Ledger(3);
  ledger.assign(lease("a"));
  ledger.nextOutgoing();
  ledger.assign(lease("b"));
  ledger.assign(lease("c"));
  ledger.lose(key("b"));
  assert.deepEqual(heartbeats(said(ledger)), [["c"]]);
  ledger.heartbeatDue();
  assert.deepEqual(heartbeats(said(ledger)), [["a", "c"]]);
});

test("results that end together leave in one message", () => {
  const ledger = new Ledger(3);
  for (const id of ["a", "b", "c"]) ledger.assign(lease(id));
  for (const id of ["a", "b", "c"]) ledger.finished(key(id), COMPLETED, undefined);
  const messages = said(ledger);
  assert.deepEqual(
    messages.map(({ $case }) => $case),
    ["heartbeat", "results"],
  );
  assert.deepEqual(outcomes(messages), ["a completed", "b completed", "c completed"]);
});

test("large results share no message", () => {
  const ledger = new Ledger(2);
  const large: WireOutcome = { $case: "completed", value: { resultJson: "x".repeat(2 * 1024 * 1024) } };
  for (const id of ["a", "b"]) ledger.assign(lease(id));
  for (const id of ["a", "b"]) ledger.finished(key(id), large, undefined);
  assert.equal(said(ledger).filter(({ $case }) => $case === "results").length, 2);
});

test("a result without a receipt is said again on the next stream", () => {
  const ledger = new Ledger(1);
  ledger.assign(lease("a"));
  ledger.finished(key("a"), COMPLETED, undefined);
  said(ledger);
  assert.deepEqual(ledger.welcomed(1, []), []);
  assert.deepEqual(outcomes(said(ledger)), ["a completed"]);
});

test("a lost execution is stopped and its result dropped", () => {
  const ledger = new Ledger(1);
  ledger.assign(lease("a"));
  assert.deepEqual(ledger.welcomed(1, [lease("a")]), [key("a")]);
  assert.deepEqual(ledger.leases(), []);
  ledger.finished(key("a"), COMPLETED, undefined);
  assert.deepEqual(outcomes(said(ledger)), []);
  assert.ok(ledger.isSettled);
});

test("the same attempt never runs twice", () => {
  const ledger = new Ledger(9);
  assert.equal(ledger.assign(lease("a")), "start");
  assert.equal(ledger.assign(lease("a")), "duplicate");
  ledger.finished(key("a"), COMPLETED, undefined);
  assert.equal(ledger.assign(lease("a")), "duplicate");
  ledger.receipted([receipt("a")]);
  assert.equal(ledger.assign(lease("a")), "duplicate");
});

test("an attempt that still ends here is handed back", () => {
  const ledger = new Ledger(9);
  ledger.assign(lease("a"));
  ledger.lose(key("a"));
  assert.equal(ledger.assign(lease("a")), "released");
});

test("a released attempt may come again", () => {
  const ledger = new Ledger(0);
  assert.equal(ledger.assign(lease("a")), "released");
  ledger.receipted([receipt("a")]);
  ledger.setCapacity(1);
  assert.equal(ledger.assign(lease("a")), "start");
});

test("what is over capacity is handed back", () => {
  const ledger = new Ledger(1);
  ledger.assign(lease("a"));
  assert.equal(ledger.assign(lease("b")), "released");
  assert.deepEqual(outcomes(said(ledger)), ["b released"]);
  assert.equal(ledger.running, 1);
});

test("a capacity is announced once, and again where the stream was opened with another", () => {
  const ledger = new Ledger(4);
  ledger.setCapacity(0);
  assert.deepEqual(said(ledger), [{ $case: "setCapacity", value: { capacity: 0 } }]);
  assert.ok(!ledger.hasOutgoing);
  ledger.welcomed(4, []);
  assert.deepEqual(said(ledger).at(-1), { $case: "setCapacity", value: { capacity: 0 } });
});

test("progress goes before the result, and lines share a message", () => {
  let forgotten = 0;
  const ledger = new Ledger(1, (bytes) => (forgotten += bytes));
  ledger.assign(lease("a"));
  const line = { at: undefined, kind: LogKind.LOG_KIND_INFO, message: "m", metaJson: "{}" };
  ledger.progressed(key("a"), '{"step":1}', [line], 10);
  ledger.progressed(key("a"), '{"step":2}', [line], 10);
  ledger.finished(key("a"), COMPLETED, undefined);
  const [, progress, results] = said(ledger);
  assert.ok(progress?.$case === "progress" && results?.$case === "results");
  assert.equal(progress.value.metadataJson, '{"step":2}');
  assert.equal(progress.value.logs.length, 2);
  assert.equal(forgotten, 20);
});

test("progress of a lost lease is forgotten and counted", () => {
  let forgotten = 0;
  const ledger = new Ledger(1, (bytes) => (forgotten += bytes));
  ledger.assign(lease("a"));
  ledger.progressed(key("a"), "{}", [], 10);
  ledger.lose(key("a"));
  ledger.progressed(key("a"), "{}", [], 10);
  assert.deepEqual(said(ledger), []);
  assert.equal(forgotten, 20);
});

test("leaving at once hands back what did not complete", () => {
  const ledger = new Ledger(3);
  for (const id of ["a", "b", "c"]) ledger.assign(lease(id));
  assert.equal(ledger.release().length, 3);
  ledger.finished(key("a"), COMPLETED, undefined);
  ledger.finished(key("b"), FAILED, undefined);
  ledger.handBack();
  assert.deepEqual(outcomes(said(ledger)), ["a completed", "b released", "c released"]);
  assert.ok(!ledger.isBusy);
});

test("the first attempt to connect is immediate, and the last is capped", () => {
  const backoff = new Backoff();
  const delays = Array.from({ length: 12 }, () => backoff.nextMs(1));
  assert.deepEqual(delays.slice(0, 4), [0, 50, 100, 200]);
  assert.equal(delays.at(-1), 5_000);
  backoff.reset();
  assert.equal(backoff.nextMs(1), 0);
  assert.equal(backoff.nextMs(0), 25);
});
