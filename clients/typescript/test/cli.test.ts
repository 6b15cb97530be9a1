import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { Client } from "errand-client";

import { QUICK, Service } from "./service.js";
import { eventually } from "./waiting.js";

const PROGRAM = fileURLToPath(new URL("../../dist/bin/errand-runner.js", import.meta.url));
const EXIT_USAGE = 64;

const MODULE = `
export const greet = (job) => "hello " + job.payload.name;
export function busy({ payload }) {
  const until = Date.now() + payload.seconds * 1000;
  while (Date.now() < until);
}
export const wait = ({ payload }) => new Promise((resolve) => setTimeout(resolve, payload.seconds * 1000));
export class Letter {}
export const address = "not a function";
function hidden() { return "must not be called"; }
export default { "letters.send": () => hidden.name };
`;

let service: Service;
let client: Client;
let module: string;

before(async () => {
  service = await Service.start(...QUICK);
  client = new Client({ servers: service.url, token: await service.operator() });
  module = path.join(service.folder, "jobs.mjs");
  await writeFile(module, MODULE);
});
after(async () => {
  client.close();
  await service.remove();
});

interface Program {
  readonly child: ChildProcess;
  readonly output: () => string;
  readonly exit: Promise<number | null>;
}

async function start(...switches: string[]): Promise<Program> {
  const env = { ...process.env, ERRAND_SERVER: service.url, ERRAND_TOKEN: await service.operator() };
  const child = spawn(process.execPath, [PROGRAM, ...switches], { env, stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => (text += chunk.toString()));
  const exit = once(child, "exit").then(([code]) => code as number | null);
  return { child, output: () => text, exit };
}

async function connected(...switches: string[]): Promise<Program> {
  const program = await start(...switches);
  await eventually("the runner is connected", () => program.output().includes("connected to"));
  return program;
}

async function isRunning(jobId: string): Promise<boolean> {
  return (await client.get(jobId)).status === "running";
}

test("it offers what the module exports, and nothing else", async () => {
  const { child, exit } = await connected("--channel", "exports", "--capacity", "5", module);
  const run = async (func: string) =>
    client.wait((await client.publish(func, { name: "ada" }, { channel: "exports" })).id);
  assert.equal((await run("greet")).result, "hello ada");
  assert.equal((await run("letters.send")).result, "hidden");
  for (const func of ["hidden", "Letter", "address", "default", "toString", "__proto__", "process.exit"]) {
    const job = await run(func);
    assert.deepEqual([job.status, job.lastError], ["failed", `this runner has no function ${func}`]);
  }
  child.kill("SIGTERM");
  assert.equal(await exit, 0);
});

test("a prefix stands before the names", async () => {
  const { child, exit } = await connected("--channel", "prefixed", "--prefix", "my.jobs.", module);
  const { id } = await client.publish("my.jobs.greet", { name: "bob" }, { channel: "prefixed" });
  assert.equal(await client.result(id), "hello bob");
  child.kill("SIGINT");
  assert.equal(await exit, 0);
});

test("SIGTERM lets a running job finish", async () => {
  const { child, exit } = await connected("--channel", "draining", module);
  const { id } = await client.publish("wait", { seconds: 0.5 }, { channel: "draining" });
  await eventually("it runs", () => isRunning(id));
  child.kill("SIGTERM");
  assert.equal(await exit, 0);
  assert.equal((await client.get(id)).status, "completed");
});

test("a second SIGTERM hands back what runs", async () => {
  const { child, exit, output } = await connected("--channel", "released", module);
  const { id } = await client.publish("wait", { seconds: 600 }, { channel: "released" });
  await eventually("it runs", () => isRunning(id));
  child.kill("SIGTERM");
  await eventually("the drain is known", async () => {
    const { data } = (await service.rest("GET", "/runners?channel=released")) as { data: { paused: boolean }[] };
    return data[0]?.paused === true;
  });
  child.kill("SIGTERM");
  assert.equal(await exit, 0, output());
  const job = await client.get(id);
  assert.equal(job.status, "pending");
  assert.ok((await client.events(id)).some(({ event }) => event === "released"));
});

test("commands are answered while a function blocks its thread", async () => {
  const { child, exit } = await connected("--channel", "blocked", "--id", "blocked-1", module);
  const { id } = await client.publish("busy", { seconds: 4 }, { channel: "blocked" });
  await eventually("it runs", () => isRunning(id));
  const ping = await service.rest("POST", "/runners/ping", { runner_id: "blocked-1", timeout: 2 });
  assert.equal(ping["responsive"], true);
  assert.ok(await isRunning(id));
  const job = await client.wait(id);
  assert.deepEqual([job.status, job.attempt], ["completed", 1]);
  child.kill("SIGTERM");
  assert.equal(await exit, 0);
});

test("a job that is canceled before its function could be called is not started", async () => {
  const { child, exit } = await connected("--channel", "crowded", "--capacity", "2", module);
  const busy = await client.publish("busy", { seconds: 3 }, { channel: "crowded" });
  await eventually("it runs", () => isRunning(busy.id));
  const { id } = await client.publish("greet", { name: "ada" }, { channel: "crowded" });
  await eventually("it is the runner's", () => isRunning(id));
  await client.cancel(id);
  // The function looks at nothing: had it been called, the job would be completed.
  assert.equal((await client.wait(id)).status, "canceled");
  assert.equal((await client.wait(busy.id)).status, "completed");
  child.kill("SIGTERM");
  assert.equal(await exit, 0);
});

test("a command line that makes no sense is refused, and a token that the service refuses is named", async () => {
  for (const [switches, complaint] of [
    [[], "name one module"],
    [["--capacity", "many", module], "capacity must be"],
    [["--nonsense", module], "nonsense"],
    [["--tls-ca", "/does/not/exist", module], "cannot read /does/not/exist"],
  ] as const) {
    const program = await start(...switches);
    assert.equal(await program.exit, EXIT_USAGE);
    assert.match(program.output(), new RegExp(complaint));
  }
  const refused = await start("--token", "nonsense", module);
  assert.equal(await refused.exit, 1);
  assert.match(refused.output(), /[Ii]nvalid token/);
});
