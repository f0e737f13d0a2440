// What tests/event/test_script_in_page.py runs: the script in a page that is made up, with a clock that only a case moves.
//
//   node simulate.mjs SCRIPT
//
// Owns the cases of answers and pages that no collector and no browser gives when asked: it prints one line of JSON, by case
// what came of it. Never waits for a real second.
import { readFileSync } from "node:fs";
import { setImmediate as turn } from "node:timers/promises";
import vm from "node:vm";

const SOURCE = readFileSync(process.argv[2], "utf8");
const taken = (events) => ({ status: 200, json: { accepted: events.length, rejected: [] } });
const words = (status) => ({ status, type: "text/plain; charset=utf-8" });

// `answer(events, number)` says what a request is answered; null is no connection.
class Page {
  constructor({ src = "https://c.example/estat.js", dataset = {}, locks, answer = taken } = {}) {
    this.now = 1764721594000;
    // By how much its clock is wrong. Timers do not go by it.
    this.skew = 0;
    this.timed = 0;
    this.timers = new Map();
    this.sent = [];
    this.targets = [];
    this.warned = [];
    this.listeners = {};
    const store = (this.store = new Map());
    const listen = (name, call) => (this.listeners[name] = call);
    const page = this;
    const fetch = async (target, { body }) => {
      const events = JSON.parse(body);
      page.targets.push(String(target));
      page.sent.push(events.map(({ event }) => event));
      const said = await answer(events, page.sent.length);
      if (!said) throw new TypeError("Failed to fetch");
      return {
        status: said.status,
        headers: new Headers(said.type ? { "Content-Type": said.type } : {}),
        json: async () => said.json ?? JSON.parse("in words"),
      };
    };
    class Clock extends Date {
      static now = () => page.now + page.skew;
    }
    const storage = { getItem: (key) => store.get(key) ?? null, setItem: (key, value) => store.set(key, String(value)) };
    const window = {
      console: { warn: (...said) => this.warned.push(said.map(String).join(" ")) },
      localStorage: new Proxy(storage, {
        get: (own, name) => (name === "removeItem" ? (key) => store.delete(key) : own[name]),
        ownKeys: () => [...store.keys()],
        getOwnPropertyDescriptor: () => ({ enumerable: true, configurable: true }),
      }),
      Date: Clock,
      setTimeout: (call, ms) => {
        const id = this.timers.size + Math.random();
        this.timed += 1;
        // A browser takes longer times for none.
        this.timers.set(id, [this.now + Math.max(ms < 2 ** 31 ? ms : 0, 1), call]);
        return id;
      },
      clearTimeout: (id) => this.timers.delete(id),
      Request: class {
        get keepalive() {
          return true;
        }
      },
      performance: { now: () => page.now - 1764721590000 },
      navigator: { locks },
      history: { pushState() {} },
      location: { href: "https://shop.example/p" },
      document: {
        currentScript: { src, dataset },
        baseURI: "https://shop.example/p",
        referrer: "",
        title: "t",
        visibilityState: "visible",
        addEventListener: listen,
        querySelector: () => null,
      },
      addEventListener: listen,
      ...{ fetch, crypto, TextEncoder, URL, AbortController },
    };
    this.window = window.window = window;
    try {
      vm.runInNewContext(SOURCE, window);
    } catch (error) {
      this.threw = String(error);
    }
  }

  track(...names) {
    for (const name of names) this.window.estat.track(name);
  }

  get waiting() {
    return [...this.store].filter(([key]) => key.startsWith("estat:")).map(([, text]) => JSON.parse(text).event);
  }

  // Lets all happen that is due within so many seconds.
  async pass(seconds) {
    const until = this.now + seconds * 1000;
    for (;;) {
      for (let turns = 0; turns < 5; turns++) await turn();
      const [id, timer] = [...this.timers].sort(([, [a]], [, [b]]) => a - b)[0] ?? [];
      if (!timer || timer[0] > until) break;
      this.timers.delete(id);
      this.now = Math.max(this.now, timer[0]);
      timer[1]();
    }
    this.now = until;
  }
}

// Somebody else refuses whatever comes, for a time.
const refusedByOthers = (said) => async () => {
  let bad = true;
  const page = new Page({ answer: (events) => (bad ? said : taken(events)) });
  page.track("a", "b", "c", "d");
  await page.pass(1);
  const soon = page.sent.length;
  await page.pass(60);
  const [kept, meanwhile] = [page.waiting.length, page.sent.length];
  bad = false;
  await page.pass(1200);
  return { soon, meanwhile, kept, left: page.waiting, taken: page.sent.slice(meanwhile).flat().sort() };
};
const hasBad = (events) => events.some(({ event }) => event === "bad");
const oneRefused = (status, names) => async () => {
  const page = new Page({ answer: (events) => (hasBad(events) ? words(status) : taken(events)) });
  page.track(...names);
  await page.pass(60);
  return { left: page.waiting, taken: page.sent.filter((sent) => !sent.includes("bad")).flat().sort() };
};
const clockSet = (days) => async () => {
  const page = new Page({ answer: (events) => (hasBad(events) ? words(400) : taken(events)) });
  page.track("bad");
  await page.pass(60);
  const timed = page.timed;
  page.skew = days * 86400000;
  await page.pass(1800);
  const meanwhile = page.timed - timed;
  page.track("a");
  await page.pass(2);
  return { meanwhile, left: page.waiting, last: page.sent.slice(-2) };
};
// The page is left while a request is under way, and told that it has failed; then it is there again.
const leftWith = (said) => async () => {
  let answered;
  const page = new Page({ answer: (events, number) => (number > 1 ? taken(events) : new Promise((done) => (answered = done))) });
  page.track("a", "b");
  await page.pass(0.06);
  const listeners = page.listeners;
  listeners.pagehide();
  answered(said);
  for (let turns = 0; turns < 5; turns++) await turn();
  page.window.document.visibilityState = "hidden";
  listeners.pagehide();
  listeners.visibilitychange();
  for (let turns = 0; turns < 5; turns++) await turn();
  const requests = page.sent.length;
  page.window.document.visibilityState = "visible";
  listeners.visibilitychange();
  await page.pass(10);
  return { requests, sent: page.sent, left: page.waiting };
};
const frozen = (freedAfter) => {
  let asked = 0;
  return {
    request: (name, options, run) => {
      asked += 1;
      if (asked > freedAfter) return Promise.resolve(run({ name }));
      if (options.ifAvailable) return Promise.resolve(run(null));
      return new Promise((_, no) => options.signal.addEventListener("abort", () => no(options.signal.reason)));
    },
  };
};
const withLocks = (request) => async () => {
  const page = new Page({ locks: { request } });
  page.track("a", "b");
  await page.pass(30);
  const early = page.sent.flat();
  await page.pass(90);
  page.track("c");
  await page.pass(1);
  return { early, sent: page.sent, left: page.waiting, warned: page.warned.length };
};
const at = (given) => async () => {
  const page = new Page(given);
  page.track("a");
  await page.pass(1);
  return page.targets[0] ?? { threw: page.threw ?? null, warned: page.warned.length };
};

const TO = "https://c.example/collect/batch";
const CASES = {
  "others: 400 in words": refusedByOthers(words(400)),
  "others: 413 in words": refusedByOthers(words(413)),
  "others: 400 as a page": refusedByOthers({ status: 400, type: "text/html" }),
  "others: 403 as JSON": refusedByOthers({ status: 403, json: { error: "no" } }),
  "others: 404 in words": refusedByOthers(words(404)),
  "others: 502": refusedByOthers({ status: 502, type: "text/html" }),
  "others: not there": refusedByOthers(null),
  "bad alone": oneRefused(400, ["bad"]),
  "bad first": oneRefused(400, ["bad", "a", "b", "c"]),
  "bad last": oneRefused(413, ["a", "b", "c", "bad"]),
  "bad twice": oneRefused(403, ["a", "bad", "b", "bad", "c"]),
  "bad alone, and another later": async () => {
    const page = new Page({ answer: (events) => (hasBad(events) ? words(400) : taken(events)) });
    page.track("bad");
    await page.pass(600);
    const before = page.waiting;
    page.track("a");
    await page.pass(2);
    return { before, left: page.waiting, last: page.sent.slice(-2) };
  },
  "left: a request has failed": leftWith(null),
  "left: an answer was cut off": leftWith({ status: 200 }),
  "clock: set back a day": clockSet(-1),
  "clock: set back forty days": clockSet(-40),
  "clock: set forward a day": clockSet(1),
  "the collector's own verdict": async () => {
    const verdict = { status: 400, json: { accepted: 0, rejected: [{ index: 0, reason: "body larger than MAX_BODY_SIZE" }] } };
    const page = new Page({ answer: () => verdict });
    page.track("bad");
    await page.pass(1);
    return { left: page.waiting, requests: page.sent.length };
  },
  "lock: given": withLocks(frozen(0).request),
  "lock: a frozen tab has it": withLocks(frozen(Infinity).request),
  "lock: a frozen tab had it": withLocks(frozen(1).request),
  "lock: refused": withLocks(() => Promise.reject(new Error("SecurityError"))),
  "lock: throws": withLocks(() => {
    throw new Error("SecurityError");
  }),
  "at: its own address": at({}),
  "at: behind a prefix": at({ src: "https://c.example/c/estat.js?v=2#x" }),
  "at: a copy by another name": at({ src: "https://cdn.example/js/e.js" }),
  "at: within the page": at({ src: "" }),
  "at: within the page, told where": at({ src: "", dataset: { to: TO } }),
  "at: with a key": at({ dataset: { key: "K&1" } }),
  "at: told where, with a query and a key": at({ dataset: { to: `${TO}?src=shop`, key: "K" } }),
  "at: told where on its own site": at({ src: "https://cdn.example/e.js", dataset: { to: "/orders/batch", key: "K" } }),
  "at: told nonsense": at({ dataset: { to: "https://" } }),
};

const found = {};
for (const [name, run] of Object.entries(CASES)) found[name] = await run();
console.log(JSON.stringify(found));
