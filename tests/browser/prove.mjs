// What `make browsers` runs: the script in a real Chromium against a real collector, in each way that goes wrong.
//
// Owns the cases. Each counts by `id`: what pages sent, what was stored, what is lost, what is there more than once. It ends
// with 1 if an event is lost, if more are doubled than the case allows, or if what the case looks at is not so.
import { readFile } from "node:fs/promises";
import { setTimeout as pause } from "node:timers/promises";
import { chromium } from "playwright-core";
import { Collector, Gate, Site } from "./collector.mjs";

const CHROMIUM = process.env.CHROMIUM || "/usr/bin/chromium";
const SETTLED_MS = 60000;

const tag = (url, attributes = "") => `<script src="${url}/estat.js" ${attributes}></script>`;
const track = (page, count, name = "t") =>
  page.evaluate(([n, event]) => Array.from({ length: n }, (_, i) => window.estat.track(event, { i })), [count, name]);
const waiting = () => Object.keys(localStorage).filter((key) => key.startsWith("estat:")).length;
const settled = (page) => page.waitForFunction(`(${waiting})() === 0`, null, { timeout: SETTLED_MS, polling: 100 });
const check = (is, what) => {
  if (!is) throw new Error(what);
};

// Each gets a context of its own (`open` makes a page in it), a site, and a collector with its `settings`. It returns the ids
// that it sent; `doubled`: so many of them may be stored more than once.
const CASES = [
  {
    name: "a page, and page views",
    async run({ open, site, collector }) {
      const page = await open(site.page("/", tag(collector.url, "data-auto")));
      const ids = await track(page, 20);
      await page.evaluate(() => history.pushState({}, "", "/second"));
      await settled(page);
      return ids;
    },
    also(events) {
      const views = events.filter(({ event }) => event === "pageview");
      check(views.length === 2, `${views.length} page views, not 2`);
      check(views.every(({ url, sentAt, at, props }) => url && sentAt >= at && props.title === "/"), "a field is missing");
    },
  },
  {
    name: "calls before the script has come",
    async run({ open, site, collector }) {
      const stub = "<script>window.estat={q:[],track(...c){this.q.push(c)}};estat.track('early',{n:1})</script>";
      const page = await open(site.page("/", stub + tag(collector.url).replace("<script", "<script async")));
      await page.waitForFunction(() => window.estat.loaded);
      const ids = await track(page, 1);
      await settled(page);
      return ids;
    },
    also: (events) => check(events.filter(({ event }) => event === "early").length === 1, "the early event is missing"),
  },
  {
    name: "examples/page.html, each button",
    async run({ open, site, collector }) {
      const html = await readFile(new URL("../../examples/page.html", import.meta.url), "utf8");
      const page = await open(site.page("/", html.replace("http://127.0.0.1:8080", collector.url)));
      await page.waitForFunction(() => window.estat.loaded);
      for (const button of ["signup", "many", "step"]) await page.click(`#${button}`);
      if (process.env.SHOT) await page.screenshot({ path: process.env.SHOT });
      await settled(page);
      check((await page.waitForSelector("text=nothing")) !== null, "it shows what has gone");
      return [];
    },
    also(events) {
      const counts = ["signup", "many", "pageview"].map((name) => events.filter(({ event }) => event === name).length);
      check(`${counts}` === "1,100,2", `signup, many, pageview: ${counts}`);
    },
  },
  {
    name: "3,000 events in bursts",
    async run({ open, site, collector }) {
      const page = await open(site.page("/", tag(collector.url)));
      const ids = [];
      for (let burst = 0; burst < 10; burst++) {
        ids.push(...(await track(page, 300)));
        await settled(page);
      }
      return ids;
    },
  },
  {
    name: "server killed, away, and back",
    async run({ open, site, collector }) {
      const page = await open(site.page("/", tag(collector.url)));
      const ids = await track(page, 10);
      await settled(page);
      await collector.kill();
      for (let n = 0; n < 5; n++) {
        ids.push(...(await track(page, 10)));
        await pause(400);
      }
      check((await page.evaluate(waiting)) === 50, "what was not answered has to wait");
      await collector.run();
      await settled(page);
      return ids;
    },
  },
  {
    name: "server away, browser closed, next visit",
    async run({ open, site, collector }) {
      const url = site.page("/", tag(collector.url));
      const page = await open(url);
      await collector.kill();
      const ids = await track(page, 25);
      await pause(1000);
      await page.close();
      await collector.run();
      await settled(await open(url));
      return ids;
    },
  },
  {
    name: "page closed in the middle",
    doubled: 25,
    async run({ open, site, collector }) {
      const url = site.page("/", tag(collector.url));
      const ids = [];
      for (const wait of [0, 0, 0, 300, 500]) {
        const page = await open(url);
        ids.push(...(await track(page, 5)));
        await pause(wait);
        await page.close({ runBeforeUnload: true });
      }
      await settled(await open(url));
      return ids;
    },
  },
  {
    name: "click, and the page is left 200 ms later",
    async run({ open, site, collector }) {
      const ids = [];
      const url = site.page("/", tag(collector.url));
      const page = await open(url);
      for (let visit = 0; visit < 10; visit++) {
        ids.push(...(await track(page, 1)));
        await pause(200);
        await page.goto(url);
      }
      await settled(page);
      return ids;
    },
  },
  {
    name: "page left by a link, and never seen again",
    async run({ open, site, collector }) {
      const page = await open(site.page("/", tag(collector.url)));
      const other = site.page("/other", "no script here");
      const ids = await track(page, 5);
      await page.goto(other);
      await pause(1500);
      return ids;
    },
  },
  {
    name: "two tabs at once",
    async run({ open, site, collector, gate }) {
      const door = await gate(() => "pass");
      const url = site.page("/", tag(door.url));
      const tabs = [await open(url), await open(url)];
      const ids = [];
      for (let round = 0; round < 10; round++) {
        const both = await Promise.all(tabs.map((tab) => track(tab, 10)));
        ids.push(...both.flat());
        await pause(150);
      }
      await settled(tabs[0]);
      check(door.most === 1, `${door.most} requests at once`);
      return ids;
    },
  },
  {
    name: "two tabs, server killed, away, and back",
    async run({ open, site, collector, gate }) {
      const door = await gate(() => "pass");
      const url = site.page("/", tag(door.url));
      const tabs = [await open(url), await open(url)];
      await collector.kill();
      const ids = [];
      for (let round = 0; round < 10; round++) {
        ids.push(...(await Promise.all(tabs.map((tab) => track(tab, 10)))).flat());
        await pause(400);
      }
      await collector.run();
      await settled(tabs[0]);
      check(door.most === 1, `${door.most} requests at once`);
      return ids;
    },
  },
  {
    name: "a tab closed while the server is away; another",
    async run({ open, site, collector }) {
      const url = site.page("/", tag(collector.url));
      const other = await open(url);
      const page = await open(url);
      await collector.kill();
      const ids = await track(page, 10);
      await page.close();
      await collector.run();
      await pause(500);
      await settled(other);
      return ids;
    },
  },
  {
    name: "two tabs without Web Locks (plain http)",
    async run({ open, site, collector }) {
      const url = site.page("/", tag(collector.url)).replace("localhost", "site.test");
      const tabs = [await open(url), await open(url)];
      check(await tabs[0].evaluate(() => !navigator.locks), "there are locks");
      const ids = (await Promise.all(tabs.map((tab) => track(tab, 100)))).flat();
      await settled(tabs[0]);
      return ids;
    },
  },
  {
    name: "503 with Retry-After",
    async run({ open, site, gate }) {
      const door = await gate((number) => (number <= 2 ? "refuse" : "pass"));
      const page = await open(site.page("/", tag(door.url)));
      const ids = await track(page, 10);
      await settled(page);
      const pauses = door.posts.slice(1).map((at, n) => at - door.posts[n]);
      check(Math.min(...pauses) >= 1000, `sent again after ${pauses} ms`);
      return ids;
    },
  },
  {
    name: "RATE_LIMIT: 429 with Retry-After",
    settings: { RATE_LIMIT: "50/s", RATE_BURST: "50" },
    async run({ open, site, collector }) {
      const page = await open(site.page("/", tag(collector.url)));
      const ids = [];
      for (let round = 0; round < 3; round++) {
        ids.push(...(await track(page, 60)));
        await pause(700);
      }
      await settled(page);
      return ids;
    },
  },
  {
    name: "answer lost after the event was stored",
    doubled: 10,
    async run({ open, site, gate }) {
      const door = await gate((number) => (number === 1 ? "lose" : "pass"));
      const page = await open(site.page("/", tag(door.url)));
      const ids = await track(page, 10);
      await settled(page);
      return ids;
    },
  },
  {
    name: "a page with status 200 in the collector's place",
    async run({ open, site, gate }) {
      const door = await gate((number) => (number <= 2 ? "portal" : "pass"));
      const page = await open(site.page("/", tag(door.url)));
      const ids = await track(page, 10);
      await settled(page);
      return ids;
    },
  },
  {
    name: "400 in words by a proxy, for a while",
    async run({ open, site, gate }) {
      const door = await gate((number) => (number <= 6 ? "misled" : "pass"));
      const page = await open(site.page("/", tag(door.url)));
      const ids = await track(page, 10);
      await settled(page);
      check(door.posts.length > 6, "it was not refused");
      return ids;
    },
  },
  {
    name: "no answer for 30 s",
    async run({ open, site, gate, context }) {
      const door = await gate((number) => (number === 1 ? "hang" : "pass"));
      await context.clock.install();
      const page = await open(site.page("/", tag(door.url)));
      const ids = await track(page, 10);
      for (let seconds = 0; (await page.evaluate(waiting)) > 0; seconds++) {
        check(seconds < 60, "it waits for an answer that does not come");
        check(seconds > 25 || door.posts.length <= 1, "it was sent again too soon");
        await context.clock.runFor(1000);
        await pause(50);
      }
      return ids;
    },
  },
  {
    name: "another tab has the lock and is frozen",
    async run({ open, site, collector, context }) {
      const url = site.page("/", tag(collector.url));
      const frozen = await open(url);
      await frozen.evaluate(() => void navigator.locks.request("estat", () => new Promise(() => {})));
      await context.clock.install();
      const page = await open(url);
      const ids = await track(page, 10);
      for (let seconds = 0; (await page.evaluate(waiting)) > 0; seconds++) {
        check(seconds < 60, "it waits for a lock that does not come");
        await context.clock.runFor(1000);
        await pause(50);
      }
      return ids;
    },
  },
  {
    name: "no keepalive: a beacon when the page is left",
    async run({ open, site, collector, context }) {
      await context.addInitScript("delete Request.prototype.keepalive");
      const page = await open(site.page("/", tag(collector.url)));
      const ids = await page.evaluate((other) => {
        const made = Array.from({ length: 5 }, (_, i) => window.estat.track("t", { i }));
        location.href = other;
        return made;
      }, site.page("/other", "no script here"));
      await pause(1500);
      return ids;
    },
  },
  {
    name: "one event that no server takes, among 20",
    async run({ open, site, collector }) {
      const page = await open(site.page("/", tag(collector.url)));
      const ids = await track(page, 10);
      await page.evaluate(() => {
        let deep = 1;
        for (let level = 0; level < 100; level++) deep = [deep];
        window.estat.track("deep", deep);
      });
      ids.push(...(await track(page, 10)));
      await settled(page);
      return ids;
    },
    also: (events) => check(!events.some(({ event }) => event === "deep"), "it was taken after all"),
  },
  {
    name: "COEP page: the script, the pixel, events",
    async run({ open, site, collector }) {
      const headers = { "Cross-Origin-Embedder-Policy": "require-corp", "Cross-Origin-Opener-Policy": "same-origin" };
      const page = await open(site.page("/", tag(collector.url), headers));
      check(await page.evaluate(() => window.crossOriginIsolated), "the page is not isolated");
      const ids = await track(page, 10);
      const width = await page.evaluate(async (source) => {
        const image = new Image();
        image.src = source;
        await image.decode();
        return image.width;
      }, `${collector.url}/collect?pixel`);
      check(width === 1, "the pixel did not load");
      await settled(page);
      return ids;
    },
  },
  {
    name: "beacons blocked",
    async run({ open, site, collector, context }) {
      await context.route("**/*", (route) => (route.request().resourceType() === "ping" ? route.abort() : route.fallback()));
      const url = site.page("/", tag(collector.url));
      const page = await open(url);
      await page.evaluate(() => (navigator.sendBeacon = () => false));
      const ids = await track(page, 10);
      await page.goto(site.page("/other", "no script here"));
      await pause(1500);
      return ids;
    },
  },
  {
    name: "paths blocked by name, and renamed ones",
    settings: { COLLECT_PATHS: "/orders,/collect", SCRIPT_PATH: "/orders.js" },
    async run({ open, site, collector, context }) {
      await context.route(/\/(collect|estat)/, (route) => route.abort());
      const page = await open(site.page("/", `<script src="${collector.url}/orders.js"></script>`));
      const ids = await track(page, 10);
      await settled(page);
      return ids;
    },
  },
  {
    name: "a write key",
    settings: { WRITE_KEYS: "web:made-up-and-long-enough" },
    async run({ open, site, collector }) {
      const page = await open(site.page("/", tag(collector.url, 'data-key="made-up-and-long-enough"')));
      const ids = await track(page, 10);
      await settled(page);
      return ids;
    },
  },
  {
    name: "GPC, and asked to heed it: nothing",
    async run({ open, site, collector, context }) {
      await context.addInitScript("Object.defineProperty(Navigator.prototype, 'globalPrivacyControl', { get: () => true })");
      const page = await open(site.page("/", tag(collector.url, "data-gpc data-auto")));
      check((await track(page, 3)).join("") === "", "it gave out ids");
      await pause(1000);
      return [];
    },
    also: (events) => check(events.length === 0, `${events.length} events were stored`),
  },
  {
    name: "GPC, and not asked",
    async run({ open, site, collector, context }) {
      await context.addInitScript("Object.defineProperty(Navigator.prototype, 'globalPrivacyControl', { get: () => true })");
      const page = await open(site.page("/", tag(collector.url)));
      const ids = await track(page, 3);
      await settled(page);
      return ids;
    },
  },
  {
    name: "a frame without storage or origin",
    async run({ open, site, collector }) {
      const inner = site.page("/inner", tag(collector.url));
      const page = await open(site.page("/", `<iframe sandbox="allow-scripts" src="${inner}"></iframe>`));
      const frame = page.frames()[1];
      await frame.waitForFunction(() => window.estat?.loaded);
      const ids = await track(frame, 10);
      await pause(2000);
      return ids;
    },
  },
  {
    name: "storage full",
    async run({ open, site, collector }) {
      const url = site.page("/", tag(collector.url));
      const page = await open(url);
      await page.evaluate(() => {
        for (let size = 1 << 22; size >= 1; size >>= 1) {
          try {
            for (let n = 0; ; n++) localStorage.setItem(`theirs-${size}-${n}`, "x".repeat(size));
          } catch {}
        }
      });
      const ids = await track(page, 10);
      await pause(2000);
      return ids;
    },
  },
];

const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--host-resolver-rules=MAP site.test 127.0.0.1"] });
const only = process.argv[2];
const table = [];
let failed = 0;
for (const { name, settings, doubled: allowed = 0, run, also } of CASES) {
  if (only && !name.includes(only)) continue;
  const collector = await Collector.start(settings);
  const site = await Site.start();
  const context = await browser.newContext();
  const gates = [];
  let sent = [];
  let wrong = "";
  try {
    sent = await run({
      collector,
      site,
      context,
      async open(url) {
        const page = await context.newPage();
        page.on("pageerror", (error) => (wrong ||= `in the page: ${error.message}`));
        await page.goto(url);
        return page;
      },
      async gate(how) {
        gates.push(await Gate.start(collector, how));
        return gates.at(-1);
      },
    });
  } catch (error) {
    wrong ||= error.message.split("\n")[0];
  }
  await context.close();
  const events = await collector.stop();
  gates.forEach((gate) => gate.stop());
  site.stop();
  const times = new Map();
  for (const { id } of events) if (id) times.set(id, (times.get(id) ?? 0) + 1);
  const stored = sent.filter((id) => times.has(id)).length;
  const doubled = sent.filter((id) => times.get(id) > 1).length;
  try {
    also?.(events);
  } catch (error) {
    wrong ||= error.message;
  }
  if (new Set(sent).size < sent.length || sent.includes("")) wrong ||= "an event got no id of its own";
  if (stored < sent.length) wrong ||= `${sent.length - stored} lost`;
  if (doubled > allowed) wrong ||= `${doubled} doubled, ${allowed} may be`;
  failed += wrong ? 1 : 0;
  table.push({ name, sent: sent.length, stored, doubled, allowed, wrong });
  const words = [name.padEnd(50), sent.length, stored, sent.length - stored, doubled].map((cell) => String(cell).padStart(7));
  if (table.length === 1) console.log(`${"case".padEnd(50)}    sent  stored    lost doubled`);
  console.log(`${words.join(" ")}  ${wrong || "as it should be"}`);
}
await browser.close();
console.log(`${table.length - failed} passed, ${failed} failed (Chromium ${browser.version()})`);
process.exit(failed ? 1 : 0);
