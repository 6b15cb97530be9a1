/**
 * How fast the client is, against a service of its own: publishing in batches and one by one, and no-op jobs executed.
 *
 * `ERRAND_BIN` names the service's program; a release build is what makes the figures mean anything.
 */
import { parseArgs } from "node:util";

import { Client, Runner } from "errand-client";

import { Service } from "../test/service.js";

const { values } = parseArgs({
  options: {
    jobs: { type: "string", default: "150000" },
    capacity: { type: "string", default: "100" },
  },
});
const jobs = Number(values.jobs);
const capacity = Number(values.capacity);
const SINGLES = 20_000;
const SINGLES_IN_FLIGHT = 64;
const BATCH = 1_000;

async function timed(what: string, count: number, work: () => Promise<void>): Promise<void> {
  const begin = performance.now();
  await work();
  tell(what, count, begin);
}

function tell(what: string, count: number, begin: number): void {
  const rate = (count / (performance.now() - begin)) * 1_000;
  console.log(`${what.padEnd(44)} ${Math.round(rate).toLocaleString("en").padStart(9)} jobs/s`);
}

async function publishSingles(client: Client): Promise<void> {
  let left = SINGLES;
  const publisher = async (): Promise<void> => {
    while (left-- > 0) await client.publish("bench.noop", {}, { channel: "singles" });
  };
  await Promise.all(Array.from({ length: SINGLES_IN_FLIGHT }, publisher));
}

async function publishBatches(client: Client): Promise<void> {
  const batch = Array.from({ length: BATCH }, () => ({ func: "bench.noop", payload: {}, channel: "bench" }));
  for (let left = jobs; left > 0; left -= BATCH) await client.publishBatch(batch.slice(0, left));
}

/** From the first call to the last receipt: a runner that drains leaves once every result has its own. */
async function execute(servers: string, token: string, channel: string, count: number): Promise<void> {
  let left = count;
  let begin = 0;
  const runner = new Runner({ servers, token, channels: [channel], capacity });
  await new Promise<void>((resolve, reject) => {
    runner.register("bench.noop", async () => {
      begin ||= performance.now();
      if (--left === 0) resolve();
    });
    runner.start().catch(reject);
  });
  await runner.drain();
  tell(`execute no-ops, capacity ${capacity}`, count, begin);
}

const service = await Service.start();
try {
  const token = await service.operator();
  const client = new Client({ servers: service.url, token });
  await timed(`publish singly, ${SINGLES_IN_FLIGHT} in flight`, SINGLES, () => publishSingles(client));
  await timed(`publish in batches of ${BATCH}`, jobs, () => publishBatches(client));
  await execute(service.url, token, "bench", jobs);
  client.close();
} finally {
  await service.remove();
}
