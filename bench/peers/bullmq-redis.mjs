// BullMQ: jobs that are done are removed, as its guide for production advises.
import { Queue, Worker } from "bullmq";

import { serve } from "./hand.mjs";

const QUEUE = "bench";
// Its guide advises 100 to 300 for jobs that wait rather than compute.
const CONCURRENCY = 200;
const OPTIONS = { removeOnComplete: true };

serve({
  prepare() {},

  async publisher(url) {
    const queue = new Queue(QUEUE, { connection: { url } });
    await queue.waitUntilReady();
    return {
      single: (payload) => queue.add("run", payload, OPTIONS),
      batch: (payloads) => queue.addBulk(payloads.map((data) => ({ name: "run", data, opts: OPTIONS }))),
      async left() {
        const counts = await queue.getJobCounts("waiting", "active", "delayed");
        return Object.values(counts).reduce((sum, count) => sum + count, 0);
      },
      clear: () => queue.drain(),
    };
  },

  async run(url, job) {
    const connection = { url, maxRetriesPerRequest: null };
    const worker = new Worker(QUEUE, async ({ data }) => job(data), { connection, concurrency: CONCURRENCY });
    await worker.waitUntilReady();
  },
});
