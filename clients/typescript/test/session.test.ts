import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";

import { status } from "@grpc/grpc-js";
import { ErrandError, Runner, type RunnerOptions } from "errand-client";

import { CommandKind, InterruptReason } from "#dist/gen/errand/v1/runners.js";

import { FakeService } from "./fake-service.js";
import { eventually, gate } from "./waiting.js";

async function fake(context: TestContext): Promise<FakeService> {
  const service = await new FakeService().start();
  context.after(() => {
    service.stop();
  });
  return service;
}

function runnerOf(servers: string | string[], run: () => unknown, options: RunnerOptions = {}): Runner {
  const settings = { servers, token: "t", channels: ["c"], capacity: 2, log: () => undefined, ...options };
  return new Runner(settings).register("f", run);
}

test("a result is repeated on the next stream until its receipt", async (context) => {
  const service = await fake(context);
  const runner = runnerOf(service.url, () => 7);
  const started = runner.start();
  const first = await service.session(0);
  await first.welcome();
  await started;
  first.assign("a");
  assert.equal(await first.outcome("a"), "completed");
  first.cut();
  const second = await service.session(1);
  const hello = await second.welcome();
  assert.deepEqual([hello.sessionId, hello.leases], ["s1", [{ jobId: "a", attempt: 1 }]]);
  assert.equal(await second.outcome("a"), "completed");
  second.accept("a");
  second.cut();
  const third = await service.session(2);
  assert.deepEqual((await third.welcome()).leases, []);
  await runner.drain();
  assert.deepEqual(third.results, []);
});

test("GoAway sends the runner to the next server, with what it holds", async (context) => {
  const [one, two] = [await fake(context), await fake(context)];
  const done = gate();
  const runner = runnerOf([one.url, two.url], () => done.opened);
  void runner.start();
  const first = await one.session(0);
  await first.welcome();
  first.assign("a");
  await eventually("the assignment is accepted", () => first.said.some(({ $case }) => $case === "heartbeat"));
  first.tell({ $case: "goAway", value: { reason: "maintenance" } });
  const second = await two.session(0);
  assert.deepEqual((await second.welcome()).leases, [{ jobId: "a", attempt: 1 }]);
  done.open();
  assert.equal(await second.outcome("a"), "completed");
  second.accept("a");
  await runner.drain();
  assert.equal(one.sessions.length, 1);
});

test("what is over the capacity is handed back at once", async (context) => {
  const service = await fake(context);
  const done = gate();
  const runner = runnerOf(service.url, () => done.opened);
  void runner.start();
  const session = await service.session(0);
  await session.welcome();
  session.assign("a", "b", "c");
  assert.equal(await session.outcome("c"), "released");
  session.accept("c");
  done.open();
  assert.equal(await session.outcome("a"), "completed");
  assert.equal(await session.outcome("b"), "completed");
  session.accept("a", "b");
  await runner.drain();
});

test("the same attempt assigned twice runs once", async (context) => {
  const service = await fake(context);
  let starts = 0;
  const runner = runnerOf(service.url, () => ++starts);
  void runner.start();
  const session = await service.session(0);
  await session.welcome();
  session.assign("a", "a");
  session.assign("a");
  await session.outcome("a");
  session.accept("a");
  session.assign("a", "b");
  await session.outcome("b");
  session.accept("b");
  await runner.drain();
  assert.equal(starts, 2);
});

test("a lost lease stops its function, and its result goes nowhere", async (context) => {
  const service = await fake(context);
  const [called, stopped] = [gate(), gate<unknown>()];
  const runner = new Runner({ servers: service.url, token: "t", channels: ["c"], log: () => undefined });
  runner.register(
    "f",
    (job) =>
      new Promise((resolve) => {
        called.open();
        job.signal.addEventListener("abort", () => {
          stopped.open(job.signal.reason);
          resolve("too late");
        });
      }),
  );
  void runner.start();
  const session = await service.session(0);
  await session.welcome();
  session.assign("a");
  await called.opened;
  const reason = InterruptReason.INTERRUPT_REASON_LEASE_LOST;
  session.tell({ $case: "interrupt", value: { lease: { jobId: "a", attempt: 1 }, reason } });
  assert.match(String(await stopped.opened), /no longer this runner's/);
  await runner.drain();
  assert.deepEqual(session.results, []);
});

test("an unknown command is answered, and a runner with no results to hand in leaves at once", async (context) => {
  const service = await fake(context);
  const runner = runnerOf(service.url, () => 1);
  void runner.start();
  const session = await service.session(0);
  await session.welcome();
  session.tell({
    $case: "command",
    value: { commandId: "c1", kind: CommandKind.COMMAND_KIND_UNSPECIFIED, dataJson: "{}", graceful: false },
  });
  const reply = await session.next("commandReply");
  assert.match(JSON.stringify(reply.value), /does not know that command/);
  session.tell({
    $case: "command",
    value: { commandId: "c2", kind: CommandKind.COMMAND_KIND_SHUTDOWN, dataJson: "{}", graceful: true },
  });
  await runner.closed;
});

test("a token that is asked for is asked for at each connection", async (context) => {
  const service = await fake(context);
  let asked = 0;
  const runner = runnerOf(service.url, () => 1, { token: () => `t${++asked}` });
  void runner.start();
  (await service.session(0)).cut();
  await (await service.session(1)).welcome();
  assert.ok(asked >= 2);
  await runner.drain();
});

test("a runner id that another bears is tried for again before the runner gives up", async (context) => {
  const service = await fake(context);
  service.refusal = status.ALREADY_EXISTS;
  const runner = runnerOf(service.url, () => 1);
  const started = runner.start();
  setTimeout(() => (service.refusal = undefined), 300);
  await (await service.session(0)).welcome();
  await started;
  await runner.drain();
});

test("a drain before there is any connection ends the runner", async (context) => {
  const service = await fake(context);
  service.refusal = status.UNAVAILABLE;
  const runner = runnerOf(service.url, () => 1);
  const started = runner.start();
  await runner.drain();
  await started;
  const refused = runnerOf(service.url, () => 1);
  service.refusal = status.PERMISSION_DENIED;
  await assert.rejects(refused.start(), ErrandError);
});
