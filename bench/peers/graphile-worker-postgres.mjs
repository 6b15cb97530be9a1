// Graphile Worker, with the batching that its documentation describes for high throughput.
import { Logger, makeWorkerUtils, run } from "graphile-worker";

import { serve } from "./hand.mjs";

// As in the measurements that its documentation shows.
const CONCURRENT_JOBS = 24;
const LOCAL_QUEUE = 500;
const logger = new Logger(() => () => {});

serve({
  async prepare(connectionString) {
    const utils = await makeWorkerUtils({ connectionString, logger });
    await utils.migrate();
    await utils.release();
  },

  async publisher(connectionString, inFlight) {
    const utils = await makeWorkerUtils({ connectionString, maxPoolSize: inFlight, logger });
    const query = (sql) => utils.withPgClient((client) => client.query(sql));
    return {
      single: (payload) => utils.addJob("run", payload),
      batch: (payloads) => utils.addJobs(payloads.map((payload) => ({ identifier: "run", payload }))),
      left: async () => Number((await query("SELECT count(*) FROM graphile_worker._private_jobs")).rows[0].count),
      clear: () => query("TRUNCATE graphile_worker._private_jobs"),
    };
  },

  run: (connectionString, job) =>
    run({
      connectionString,
      noHandleSignals: true,
      taskList: { run: async (payload) => job(payload) },
      logger,
      preset: {
        worker: {
          concurrentJobs: CONCURRENT_JOBS,
          maxPoolSize: CONCURRENT_JOBS + 2,
          localQueue: { size: LOCAL_QUEUE },
          completeJobBatchDelay: 0,
          failJobBatchDelay: 0,
        },
      },
    }),
});
