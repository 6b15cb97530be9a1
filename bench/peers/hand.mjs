// One process of a peer that is written in JavaScript: publishes or runs jobs as bench/peers/measure.py tells it.
//
// Commands come as lines of JSON on standard input, each is answered by one line on standard output; beside the answers,
// a process that runs jobs says how many it has done. Times are microseconds of the system's monotonic clock, which all
// processes of a machine share.
//
// A peer is an object:
//   prepare(url)             once, before anything else: schema, queue
//   publisher(url, inFlight) → {single(payload), batch(payloads) or undefined, left(), clear()}
//   run(url, job)            takes jobs from then on, and calls job(payload) for each
import { createInterface } from "node:readline";

const REPORT_EVERY_MS = 20;
// How often a publisher looks for publishes that are due; what it is late by counts as latency.
const TICK_MS = 1;

const now = () => Number(process.hrtime.bigint() / 1000n);
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

export function serve(peer) {
  const url = process.env.PEER_URL;
  const inFlight = Number(process.env.PEER_IN_FLIGHT);
  let publisher;
  let done = 0;
  let first = 0;
  let latencies = [];
  let lost;

  const job = (payload) => {
    const at = now();
    first ||= at;
    if (payload.intended !== undefined) latencies.push(at - payload.intended);
    done += 1;
  };

  const commands = {
    prepare: () => peer.prepare(url),
    async connect() {
      publisher = await peer.publisher(url, inFlight);
      return { batches: publisher.batch !== undefined, runners_per_processor: 1 };
    },
    left: () => publisher.left(),
    clear: () => publisher.clear(),

    async publish({ how, in_flight, seconds, jobs, batch, filler }) {
      const began = now();
      const end = seconds === undefined ? Infinity : began + seconds * 1e6;
      let left = jobs ?? Infinity;
      let published = 0;
      const one = async () => {
        while (left > 0 && now() < end) {
          const size = how === "batch" ? Math.min(batch, left) : 1;
          left -= size;
          if (how === "batch") await publisher.batch(Array.from({ length: size }, () => ({ filler })));
          else await publisher.single({ filler });
          published += size;
        }
      };
      await Promise.all(Array.from({ length: in_flight }, one));
      return { jobs: published, began, ended: now() };
    },

    async pace({ begin, gap, first: number, jobs, warm_ups }) {
      // Jobs with a negative number warm up and carry no moment.
      let next = -warm_ups;
      let underWay = 0;
      while (next < jobs || underWay > 0) {
        while (next < jobs && underWay < inFlight && begin + number + next * gap <= now()) {
          const intended = begin + number + next * gap;
          const publish = publisher.single(next < 0 ? {} : { intended });
          publish.then(() => (underWay -= 1), (error) => (lost ??= error));
          underWay += 1;
          next += 1;
        }
        if (lost !== undefined) throw lost;
        await new Promise((resolve) => setTimeout(resolve, TICK_MS));
      }
      return { jobs: jobs + warm_ups };
    },

    async run() {
      await peer.run(url, job);
      let said = 0;
      setInterval(() => {
        if (done !== said) say({ done, first });
        said = done;
      }, REPORT_EVERY_MS);
    },
    again() {
      done = first = 0;
      latencies = [];
    },
    latencies: () => latencies,
  };

  const lines = createInterface({ input: process.stdin });
  lines.on("line", async (line) => {
    const { do: name, ...rest } = JSON.parse(line);
    try {
      say({ answer: (await commands[name](rest)) ?? null });
    } catch (error) {
      say({ failed: String(error?.stack ?? error) });
    }
  });
  // Whoever gave the commands has gone: nothing of this run is needed any more.
  lines.on("close", () => process.exit(0));
}
