// pg-boss: polls, as by default, at the shortest interval it permits, and without a pause while batches come full.
//
// It can wake its workers with NOTIFY instead. That is left out: Postgres commits transactions that notify one after the
// other, each with a write to the disk of its own, and single publishes then are no faster than the disk is.
import { PgBoss } from "pg-boss";

import { serve } from "./hand.mjs";

const QUEUE = "bench";
const POLLS = { batchSize: 200, localConcurrency: 4, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5 };

async function start(connectionString, max) {
  const boss = new PgBoss({ connectionString, max });
  boss.on("error", (error) => console.error(error));
  await boss.start();
  return boss;
}

serve({
  async prepare(url) {
    const boss = await start(url, 2);
    await boss.createQueue(QUEUE);
    await boss.stop();
  },

  async publisher(url, inFlight) {
    const boss = await start(url, inFlight);
    const query = (sql) => boss.getDb().executeSql(sql);
    return {
      single: (payload) => boss.send(QUEUE, payload),
      batch: (payloads) => boss.insert(QUEUE, payloads.map((data) => ({ data }))),
      async left() {
        const sql = `SELECT count(*) FROM pgboss.job WHERE name = '${QUEUE}' AND state < 'completed'`;
        return Number((await query(sql)).rows[0].count);
      },
      clear: () => boss.deleteAllJobs(QUEUE),
    };
  },

  async run(url, job) {
    const boss = await start(url, 10);
    await boss.work(QUEUE, POLLS, async (jobs) => jobs.forEach(({ data }) => job(data)));
  },
});
