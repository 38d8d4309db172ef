// BullMQ over Redis: a job is a 1 KiB string, which comes back as its return value.
//
// Takes the arguments that the Python peers take and prints the same object; see measure.py. "durable" differs from
// "defaults" in Redis alone, which whoever starts this sets to write every command to disk before it answers.

const { fork } = require("node:child_process");
const { readdirSync, readFileSync } = require("node:fs");
const { parseArgs } = require("node:util");
const { Queue, QueueEvents, Worker } = require("bullmq");
const { Redis } = require("ioredis");
const { version } = require("bullmq/package.json");

const QUEUE = "jobs";
const PAYLOAD = "x".repeat(1024);
/** How long nothing may come back before what is missing counts as lost. */
const PATIENCE_MS = 30_000;
const WARM_UP = 320;
const WORKERS = 1;
/** Tried: with 50, with 300 and with two workers it is no faster. */
const CONCURRENCY = 100;
const SUMMARY = {
  durable: "one worker of concurrency 100, addBulk; Redis appendfsync always",
  defaults: "one worker of concurrency 100, addBulk; Redis appendfsync everysec",
};

const { values: args } = parseArgs({
  options: {
    setting: { type: "string" },
    broker: { type: "string" },
    state: { type: "string" },
    jobs: { type: "string", default: "1000" },
    window: { type: "string", default: "1000" },
    mode: { type: "string", default: "saturate" },
    rate: { type: "string", default: "200" },
    worker: { type: "boolean", default: false },
  },
});

// Workers and listeners demand it: their blocking calls are tried again for ever.
const connection = () => new Redis(args.state, { maxRetriesPerRequest: null });

(args.worker ? work() : drive()).catch((error) => {
  console.error(error);
  process.exit(1);
});

async function work() {
  const options = { connection: connection(), concurrency: CONCURRENCY, removeOnComplete: { count: 0 } };
  const worker = new Worker(QUEUE, async (job) => job.data.payload, options);
  await worker.waitUntilReady();
  process.on("SIGTERM", () => worker.close().then(() => process.exit(0)));
  process.on("disconnect", () => process.exit(1));
  process.send("ready");
}

async function drive() {
  const start = () => fork(__filename, [...process.argv.slice(2), "--worker"]);
  const workers = Array.from({ length: WORKERS }, start);
  await Promise.all(workers.map((worker) => new Promise((ready) => worker.once("message", ready))));
  const client = await Client.connect();
  await client.saturate(WARM_UP, WARM_UP);

  const [jobs, window, rate] = [args.jobs, args.window, args.rate].map(Number);
  const [cpu, began] = [cpuS(), performance.now()];
  const took = args.mode === "rate" ? await client.atRate(jobs, rate) : await client.saturate(jobs, window);
  const elapsedS = (performance.now() - began) / 1000;
  const usedS = cpuS() - cpu;

  took.sort((one, other) => one - other);
  const at = (share) => took[Math.min(Math.floor(took.length * share), took.length - 1)] ?? null;
  const measured = {
    jobs,
    jobs_per_s: took.length / elapsedS,
    p50_ms: at(0.5),
    p99_ms: at(0.99),
    lost: jobs - took.length,
    cpu_s: usedS,
    settings: { version, summary: SUMMARY[args.setting], workers: WORKERS, concurrency: CONCURRENCY },
  };
  console.log(JSON.stringify(measured));
  const ended = workers.map((worker) => new Promise((end) => worker.once("exit", end)));
  for (const worker of workers) worker.kill("SIGTERM");
  await Promise.all(ended);
  process.exit(0);
}

/** Adds jobs and learns of their results through one event listener: `waitUntilFinished` would ask Redis once more for each. */
class Client {
  static async connect() {
    const client = new Client();
    client.queue = new Queue(QUEUE, { connection: connection() });
    // From the stream's beginning: a job that ends before the first read would otherwise not be heard of.
    client.events = new QueueEvents(QUEUE, { connection: connection(), lastEventId: "0-0" });
    client.events.on("completed", ({ jobId, returnvalue }) => client.completed(jobId, returnvalue));
    await client.events.waitUntilReady();
    return client;
  }

  /** Closed loop. What there is room for goes out in one `addBulk`, as the guide advises for many jobs. */
  async saturate(jobs, window) {
    let left = jobs;
    let due = false;
    const fill = () => {
      due = false;
      const room = Math.min(left, window - this.outstanding.size);
      left -= room;
      if (room > 0) this.add(Array(room).fill(performance.now()));
    };
    return this.run(jobs, fill, () => {
      // Once for all results that one read of the socket brought.
      if (!due && left > 0) setImmediate(fill);
      due = true;
    });
  }

  /** Open loop: job n is due at n / rate seconds, whatever became of the others, and timed from then. */
  async atRate(jobs, rate) {
    const began = performance.now();
    let next = 0;
    const send = () => {
      const now = performance.now();
      while (next < jobs && began + (next * 1000) / rate <= now) this.add([began + (next++ * 1000) / rate]);
      const early = began + (next * 1000) / rate - performance.now();
      // A timer is up to a millisecond late; the last one is spent looking, with results let in between.
      if (next < jobs) early > 1.5 ? setTimeout(send, early - 1) : setImmediate(send);
    };
    return this.run(jobs, send, () => {});
  }

  /** Milliseconds of each job whose result came. */
  async run(jobs, start, more) {
    const took = [];
    [this.outstanding, this.added] = [new Map(), this.added ?? 0];
    await new Promise((end) => {
      let seen = performance.now();
      const watch = setInterval(() => performance.now() - seen > PATIENCE_MS && finish(), 1000);
      const finish = () => end(clearInterval(watch));
      this.completed = (id, result) => {
        if (!this.outstanding.has(id)) return;
        if (result !== PAYLOAD) throw new Error("a result that is not its job's");
        seen = performance.now();
        took.push(seen - this.outstanding.get(id));
        this.outstanding.delete(id);
        took.length === jobs ? finish() : more();
      };
      start();
    });
    return took;
  }

  add(times) {
    const jobs = times.map((since) => {
      const jobId = `job-${process.pid}-${this.added++}`;
      this.outstanding.set(jobId, since);
      return { name: "echo", data: { payload: PAYLOAD }, opts: { jobId } };
    });
    const [{ name, data, opts }] = jobs;
    jobs.length === 1 ? this.queue.add(name, data, opts) : this.queue.addBulk(jobs);
  }
}

/** CPU seconds of this process and all it started: user and system. */
function cpuS() {
  const stats = new Map();
  for (const pid of readdirSync("/proc").filter((name) => /^\d+$/.test(name))) {
    try {
      // The name, in parentheses, may hold anything.
      stats.set(pid, readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").pop().split(" "));
    } catch {
      // It has just ended.
    }
  }
  const ours = [String(process.pid)];
  for (const root of ours) for (const [pid, stat] of stats) if (stat[1] === root) ours.push(pid);
  const ticks = ours.flatMap((pid) => stats.get(pid)?.slice(11, 15) ?? []).map(Number);
  // USER_HZ is 100 on every Linux that Node runs on.
  return ticks.reduce((sum, one) => sum + one, 0) / 100;
}
