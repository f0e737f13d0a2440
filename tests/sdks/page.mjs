// Sends events with one of the browsers' SDKs from a page, as a site of a user would:
//
//   BROWSER=ws://… node page.mjs SDK URL KEY TAG EVENTS PAUSE [OPTION [leave]]
//
// It says "ready", waits for a line, sends, flushes until its standard input ends, and prints the errors that the SDK
// and the page reported, as JSON. The event number n has the id TAG-000n. With `leave` the page goes to another one in the
// moment of the last event, and comes back at the next line. The page is on `localhost`: another site than the collector. What
// it asks of other hosts is an error, too. The settings are those of docs/sdks.md, but for shorter waits.

import { once } from "node:events";
import { readFile } from "node:fs/promises";
import http from "node:http";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { chromium } from "playwright-core";

const [sdk, url, key, tag, events, pause, option, leave] = process.argv.slice(2);
const MODULES = new URL("node_modules/", import.meta.url);
const errors = [];

// What a page loads, and what it then does: `make` runs in the page, and says how an event is sent and the rest flushed.
const SDKS = {
  segment: {
    script: "@segment/analytics-next/dist/umd/index.js",
    async make({ url, key, option }) {
      const { host } = new URL(url);
      const deliveryStrategy = option === "batching" ? { strategy: "batching", config: { size: 5, timeout: 200 } } : {};
      const segmentio = { apiKey: key, apiHost: `${host}/v1`, protocol: "http", deliveryStrategy };
      const [client] = await window.AnalyticsNext.AnalyticsBrowser.load({
        writeKey: key, cdnSettings: { integrations: { "Segment.io": segmentio }, metrics: { sampleRate: 0 } },
      });
      client.on("error", ({ code, reason }) => window.failed(`${code} ${reason}`));
      client.setAnonymousId("u1");
      return { send: (probe) => client.track("bought", { probe, price: 9.5 }) };
    },
  },
  rudderstack: {
    script: "@rudderstack/analytics-js/dist/npm/modern/bundled/umd/index.js",
    async make({ url, key, option }) {
      const client = new window.rudderanalytics.RudderAnalytics();
      const source = { id: "s", name: "s", enabled: true, writeKey: key, workspaceId: "w", config: {}, destinations: [], connections: [] };
      await new Promise((loaded) =>
        client.load(key, url, {
          getSourceConfig: () => ({ source, updatedAt: "" }), onLoaded: loaded, useBeacon: option === "beacon",
          queueOptions: { batch: { enabled: option === "batch", maxItems: 5, flushInterval: 200 } },
          beaconQueueOptions: { maxItems: 5, flushQueueInterval: 200 },
        }));
      client.setAnonymousId("u1");
      return { send: (probe) => client.track("bought", { probe, price: 9.5 }) };
    },
  },
  jitsu: {
    async make({ url, key, modules }) {
      const { jitsuAnalytics } = await import(`${modules}@jitsu/js/dist/jitsu.es.js`);
      const client = jitsuAnalytics({ host: url, writeKey: key, errorPolicy: (message, ...args) => window.failed(`${message} ${args}`) });
      client.setAnonymousId("u1");
      return { send: (probe) => client.track("bought", { probe, price: 9.5 }).catch?.((error) => window.failed(String(error))) };
    },
  },
  posthog: {
    async make({ url, key, option, modules }) {
      const { default: client } = await import(`${modules}posthog-js/dist/module.js`);
      client.init(key, {
        api_host: url, advanced_disable_flags: true, disable_external_dependency_loading: true,
        disable_session_recording: true, disable_surveys: true, autocapture: false, capture_pageview: false,
        opt_out_useragent_filter: true, // or it sends nothing from a browser that a program drives
        disable_compression: option === "plain", bootstrap: { distinctID: "u1" }, request_queue_config: { flush_interval_ms: 250 },
        on_request_error: ({ statusCode, error }) => window.failed(`${statusCode} ${error ?? ""}`),
      });
      return { send: (probe) => client.capture("bought", { probe, price: 9.5 }) };
    },
  },
  snowplow: {
    script: "@snowplow/browser-tracker/dist/index.umd.min.js",
    async make({ url, key, option }) {
      const { newTracker, trackSelfDescribingEvent, setUserId, flushBuffer } = window.snowplowBrowserTracking;
      newTracker("sp", url, {
        appId: "shop", encodeBase64: false, customHeaders: { "X-Write-Key": key }, bufferSize: 5,
        eventMethod: option === "get" ? "get" : "post", connectionTimeout: 30000,
        onRequestFailure: ({ status, message }) => window.failed(`${status} ${message}`),
      });
      setUserId("u1");
      const schema = "iglu:com.example/bought/jsonschema/1-0-0";
      return {
        send: (probe) => trackSelfDescribingEvent({ event: { schema, data: { probe, price: 9.5 } } }),
        flush: () => flushBuffer(),
      };
    },
  },
};

const { script, make } = SDKS[sdk];

const site = http.createServer(async (request, response) => {
  if (request.url.startsWith("/modules/")) {
    const text = await readFile(new URL(request.url.slice("/modules/".length), MODULES)).catch(() => null);
    return response.writeHead(text ? 200 : 404, { "Content-Type": "text/javascript; charset=utf-8" }).end(text);
  }
  const tags = request.url === "/" && script ? `<script src="/modules/${script}"></script>` : "";
  response.writeHead(200, { "Content-Type": "text/html" }).end(`<!doctype html><link rel="icon" href="data:,">${tags}`);
});
await new Promise((resolve) => site.listen(0, "127.0.0.1", resolve));
const home = `http://localhost:${site.address().port}/`;

const browser = await chromium.connect(process.env.BROWSER);
const context = await browser.newContext();
const page = await context.newPage();
// Only listened to: whoever intercepts requests gets no preflights to see.
page.on("request", (request) => {
  const { origin, host } = new URL(request.url());
  if (![new URL(home).origin, url, "null"].includes(origin)) errors.push(`it asked ${host}`);
});
page.on("pageerror", (error) => errors.push(`in the page: ${error.message}`));
page.on("console", (message) => message.type() === "error" && errors.push(`console: ${message.text()}`));
await page.exposeFunction("failed", (message) => errors.push(message));

const open = async () => {
  await page.goto(home);
  const settings = JSON.stringify({ url, key, option, modules: `${home}modules/` });
  await page.evaluate(`(async () => { window.made = await { ${make} }.make(${settings}); })()`);
};

await open();
const input = createInterface({ input: process.stdin });
const lines = input[Symbol.asyncIterator](); // it keeps a line that comes before it is waited for
const ended = once(input, "close").then(() => true);
console.log("ready");
await lines.next();
const sending = page.evaluate(async ({ tag, events, pause, leave }) => {
  for (let number = 0; number < events; number += 1) {
    window.made.send(`${tag}-${String(number).padStart(4, "0")}`);
    if (number + 1 < events) await new Promise((resolve) => setTimeout(resolve, pause));
  }
  if (leave) location.href = "/left";
}, { tag, events: Number(events), pause: Number(pause) * 1000, leave: leave === "leave" });
if (leave) {
  await Promise.all([page.waitForURL("**/left"), sending.catch(() => {})]);
  await lines.next();
  await open();
} else {
  await sending;
}
do {
  await page.evaluate(() => window.made.flush?.());
} while (!(await Promise.race([ended, sleep(300, false)])));
await context.close();
console.log(JSON.stringify(errors));
process.exit(0);
