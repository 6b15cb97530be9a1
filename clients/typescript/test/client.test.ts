import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import {
  Client,
  ConflictError,
  type ErrandError,
  InvalidError,
  JobNotCompletedError,
  NotFoundError,
  PermissionDeniedError,
  RawJson,
  RefusedError,
  Runner,
  TimeoutError,
  TooLargeError,
  UnauthenticatedError,
  UnavailableError,
} from "errand-client";

import { QUICK, Service } from "./service.js";

const UNKNOWN_ID = "0".repeat(32);
const TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

let service: Service;
let client: Client;

before(async () => {
  service = await Service.start(...QUICK);
  client = new Client({ servers: service.url, token: await service.operator() });
});
after(async () => {
  client.close();
  await service.remove();
});

/** An address on which nobody listens. */
async function deadAddress(): Promise<string> {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as net.AddressInfo;
  server.close();
  await once(server, "close");
  return `127.0.0.1:${port}`;
}

test("a published job has everything that was said of it", async () => {
  const expiresAt = new Date(Date.now() + 7_200_000);
  const job = await client.publish(
    "emails.send",
    { to: "ada", note: "grüße 🎉" },
    {
      channel: "quiet",
      delaySeconds: 3_600,
      expiresAt,
      maxRetries: 5,
      backoffBase: 1.5,
      backoffMaxSeconds: 60,
      maxExecSeconds: 30,
      idempotencyKey: "everything",
      priority: -7,
      traceparent: TRACEPARENT,
    },
  );
  assert.match(job.id, /^[0-9a-f]{32}$/);
  assert.deepEqual(job.payload, { to: "ada", note: "grüße 🎉" });
  assert.equal(job.status, "pending");
  assert.equal(job.channel, "quiet");
  assert.equal(job.expiresAt?.getTime(), expiresAt.getTime());
  assert.ok((job.runAt?.getTime() ?? 0) > Date.now() + 3_500_000);
  assert.deepEqual([job.maxRetries, job.backoffBase, job.backoffMaxSeconds], [5, 1.5, 60]);
  assert.deepEqual([job.maxExecSeconds, job.priority, job.idempotencyKey], [30, -7, "everything"]);
  assert.deepEqual([job.owner, job.traceparent, job.deduplicated], ["operator", TRACEPARENT, false]);
  assert.deepEqual(await client.get(job.id), withoutReceipt(job));
});

function withoutReceipt<T extends { deduplicated: boolean }>(job: T): Omit<T, "deduplicated"> {
  const { deduplicated: _, ...rest } = job;
  return rest;
}

test("a run time may be a text, and a payload may be text that is JSON", async () => {
  const runAt = new Date(Date.now() + 3_600_000).toISOString();
  const job = await client.publish("f", new RawJson('{ "n": 9007199254740993 }'), { channel: "quiet", runAt });
  assert.equal(job.runAt?.toISOString(), runAt);
  assert.equal(job.payloadText, '{ "n": 9007199254740993 }');
});

test("the same idempotency key finds the first job, and refuses another content", async () => {
  const publish = (payload: object) => client.publish("f", { ...payload }, { idempotencyKey: "k", channel: "quiet" });
  const first = await publish({ a: 1 });
  const second = await publish({ a: 1 });
  assert.deepEqual([second.id, second.deduplicated], [first.id, true]);
  await assert.rejects(publish({ a: 2 }), (error) => {
    assert.ok(error instanceof ConflictError);
    assert.deepEqual([error.code, error.reason], ["ALREADY_EXISTS", "ALREADY_EXISTS"]);
    return true;
  });
});

test("a batch is published as a whole or not at all", async () => {
  const receipts = await client.publishBatch(
    [1, 2, 3].map((index) => ({ func: "batched", payload: { index }, channel: "batch" })),
  );
  const jobs = await Promise.all(receipts.map(({ jobId }) => client.get(jobId)));
  assert.deepEqual(
    jobs.map((job) => job.payload["index"]),
    [1, 2, 3],
  );
  const bad = [
    { func: "batched", payload: {}, channel: "batch" },
    { func: "not a name", payload: {}, channel: "batch" },
  ];
  await assert.rejects(client.publishBatch(bad), InvalidError);
  assert.equal((await client.list({ channel: "batch", count: true })).total, 3);
});

test("a job is published like another", async () => {
  const template = await client.publish("f", { a: 1 }, { channel: "quiet", maxRetries: 9 });
  const copy = await client.get(await client.publishLike(template.id, { payload: { a: 2 }, delaySeconds: 60 }));
  assert.deepEqual([copy.func, copy.maxRetries, copy.payload], ["f", 9, { a: 2 }]);
  assert.notEqual(copy.id, template.id);
});

test("a status tells events and the place in the queue", async () => {
  const first = await client.publish("f", {}, { channel: "line" });
  const second = await client.publish("f", {}, { channel: "line" });
  assert.equal((await client.status(first.id)).queuePosition, 1);
  const report = await client.status(second.id);
  assert.equal(report.queuePosition, 2);
  assert.equal(report.recentEvents[0]?.event, "created");
  assert.equal(report.job.id, second.id);
});

test("lists filter, sort and page", async () => {
  const ids: string[] = [];
  for (let index = 0; index < 5; index++) ids.push((await client.publish(`l.f${index}`, {}, { channel: "list" })).id);
  const listed: string[] = [];
  for await (const job of client.listAll({ channel: "list", pageSize: 2, order: "created" })) listed.push(job.id);
  assert.deepEqual(listed, ids);
  const page = await client.list({ channel: "list", status: ["pending", "running"], search: "l.f3", count: true });
  assert.deepEqual([page.jobs.map((job) => job.func), page.total, page.nextPageToken], [["l.f3"], 1, ""]);
  const future = new Date(Date.now() + 60_000);
  assert.deepEqual((await client.list({ channel: "list", createdFrom: future })).jobs, []);
});

test("a job is canceled, retried and deleted", async () => {
  const job = await client.publish("f", {}, { channel: "quiet" });
  const { job: canceled, forced } = await client.cancel(job.id);
  assert.deepEqual([canceled.status, forced], ["canceled", false]);
  await assert.rejects(client.cancel(job.id), (error) => {
    assert.ok(error instanceof RefusedError);
    assert.match(error.message, /canceled/);
    return true;
  });
  const retried = await client.retry(job.id, { delaySeconds: 60 });
  assert.deepEqual([retried.originalJobId, retried.delayed], [job.id, true]);
  assert.equal((await client.get(retried.newJobId)).status, "pending");
  const events = await client.events(job.id);
  assert.deepEqual(
    events.map(({ event }) => event),
    ["created", "canceled", "retry"],
  );
  await client.delete(job.id);
  await assert.rejects(client.get(job.id), NotFoundError);
});

test("what the service refuses has a class, a code and a reason", async () => {
  const stranger = new Client({ servers: service.url, token: await service.token("stranger") });
  const nobody = new Client({ servers: service.url, token: "" });
  const job = await client.publish("f", {}, { channel: "quiet" });
  await refused(client.get(UNKNOWN_ID), NotFoundError, "NOT_FOUND", "JOB_NOT_FOUND");
  await refused(stranger.cancel(job.id), PermissionDeniedError, "PERMISSION_DENIED", "PERMISSION_DENIED");
  await refused(nobody.get(job.id), UnauthenticatedError, "UNAUTHENTICATED", "UNAUTHENTICATED");
  const invalid = await refused(client.publish("a b"), InvalidError, "INVALID_ARGUMENT", "INVALID_ARGUMENT");
  assert.equal(invalid.field, "func");
  const large = client.publish("f", { text: "x".repeat(1_100_000) });
  await refused(large, TooLargeError, "RESOURCE_EXHAUSTED", "PAYLOAD_TOO_LARGE");
  stranger.close();
  nobody.close();
});

async function refused<E extends ErrandError>(
  call: Promise<unknown>,
  type: new (...args: never[]) => E,
  code: string,
  reason: string,
): Promise<E> {
  const error: unknown = await call.then(
    () => assert.fail("it was not refused"),
    (error: unknown) => error,
  );
  assert.ok(error instanceof type, `${String(error)} is no ${type.name}`);
  assert.deepEqual([error.code, error.reason], [code, reason]);
  return error;
}

test("what no job can have is refused before it is sent", async () => {
  await assert.rejects(client.publish("f", {}, { maxRetries: -1 }), /maxRetries must be a whole number/);
  await assert.rejects(client.publish("f", {}, { delaySeconds: 0.5 }), /delaySeconds must be a whole number/);
  await assert.rejects(client.publish("f", {}, { runAt: "soon" }), /runAt must be a time/);
  await assert.rejects(client.publish("f", [] as never), /payload must be an object/);
  assert.throws(() => new Client({ servers: "ftp://a:1" }), /must begin with http/);
});

test("a signal ends a call with its own reason", async () => {
  const reason = new Error("changed my mind");
  await assert.rejects(client.get(UNKNOWN_ID, { signal: AbortSignal.abort(reason) }), reason);
  const job = await client.publish("f", {}, { channel: "quiet" });
  const controller = new AbortController();
  const waiting = client.wait(job.id, { signal: controller.signal });
  controller.abort(reason);
  await assert.rejects(waiting, reason);
  const watching = new AbortController();
  const watch = (async () => {
    for await (const { event } of client.watch({ jobId: job.id }, { signal: watching.signal })) assert.ok(event);
  })();
  await sleep(50);
  watching.abort(reason);
  await assert.rejects(watch, reason);
});

test("waiting has an end", async () => {
  const job = await client.publish("f", {}, { channel: "quiet" });
  await assert.rejects(client.wait(job.id, { timeoutMs: 100 }), (error) => {
    assert.ok(error instanceof TimeoutError);
    assert.match(error.message, /has not ended within 100 ms/);
    return true;
  });
});

test("a result is waited for, and so is another end", async () => {
  const runner = new Runner({ servers: service.url, token: await service.operator(), channels: ["waited"] });
  runner.register("double", (job) => ({ twice: 2 * Number(job.payload["n"]) }));
  runner.register("nothing", () => undefined);
  await runner.start();
  const job = await client.publish("double", { n: 21 }, { channel: "waited" });
  assert.deepEqual(await client.result(job.id), { twice: 42 });
  assert.deepEqual(await client.result(job.id), { twice: 42 });
  const nothing = await client.publish("nothing", {}, { channel: "waited" });
  assert.equal(await client.result(nothing.id), null);
  const failing = await client.publish("unheard.of", {}, { channel: "waited" });
  await assert.rejects(client.result(failing.id), (error) => {
    assert.ok(error instanceof JobNotCompletedError);
    assert.equal(error.job.status, "failed");
    assert.match(error.message, /unheard\.of/);
    return true;
  });
  await runner.drain();
});

test("events of a channel are watched as they happen", async () => {
  const stop = new AbortController();
  const seen: string[] = [];
  const watching = (async () => {
    for await (const { event, job } of client.watch({ channel: "watched" }, { signal: stop.signal })) {
      seen.push(`${job.func} ${event.event}`);
      if (event.event === "canceled") return;
    }
  })();
  // The watch begins when it does: jobs are published until it has seen one.
  while (seen.length === 0) {
    await client.publish("w", {}, { channel: "watched" });
    await sleep(20);
  }
  const [job] = (await client.list({ channel: "watched" })).jobs;
  await client.cancel(job?.id ?? "");
  await watching;
  assert.equal(seen.at(0), "w created");
  assert.equal(seen.at(-1), "w canceled");
});

test("a token may be asked for at each call", async () => {
  let asked = 0;
  const token = await service.operator();
  const asking = new Client({
    servers: service.url,
    token: async () => {
      asked += 1;
      return token;
    },
  });
  await asking.list();
  await asking.list();
  assert.equal(asked, 2);
  asking.close();
});

test("the client's own trace context goes along", async () => {
  const token = await service.operator();
  const traced = new Client({ servers: service.url, token, traceparent: () => TRACEPARENT });
  assert.equal((await traced.publish("f", {}, { channel: "quiet" })).traceparent, TRACEPARENT);
  traced.close();
});

test("a server that cannot be reached is named, and the next one is tried", async () => {
  const dead = await deadAddress();
  const token = await service.operator();
  const lonely = new Client({ servers: dead, token });
  await assert.rejects(lonely.publish("f"), (error) => {
    assert.ok(error instanceof UnavailableError);
    assert.match(error.message, new RegExp(`^cannot reach http://${dead}: .*ECONNREFUSED`));
    return true;
  });
  const both = new Client({ servers: `${dead},${service.grpc}`, token });
  const job = await both.publish("f", {}, { channel: "quiet" });
  assert.equal((await both.get(job.id)).id, job.id);
  lonely.close();
  both.close();
  await assert.rejects(both.get(job.id), UnavailableError);
});

test("waiting outlives a restart of the service", async () => {
  const own = await Service.start(...QUICK);
  const token = await own.operator();
  const waiter = new Client({ servers: own.url, token });
  const job = await waiter.publish("late", {}, { channel: "late" });
  const waiting = waiter.result(job.id, { timeoutMs: 20_000 });
  await own.stop();
  await own.start();
  const runner = new Runner({ servers: own.url, token, channels: ["late"], log: () => undefined });
  await runner.register("late", () => "done").start();
  assert.equal(await waiting, "done");
  await runner.drain();
  waiter.close();
  await own.remove();
});
