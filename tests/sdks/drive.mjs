// Sends events with one of the Node SDKs, as a program of a user would:
//
//   node drive.mjs SDK URL KEY TAG EVENTS PAUSE [gzip|get]
//
// It says "ready", waits for a line, sends, flushes until its standard input ends, and prints the errors that the SDK
// reported, as JSON. The event number n has the id TAG-000n.

import { once } from "node:events";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

const [sdk, url, key, tag, events, pause, option] = process.argv.slice(2);
const errors = [];
const failed = (error) => errors.push(String(error?.reason?.message ?? error?.message ?? error?.code ?? error));

const makers = {
  async segment() {
    const { Analytics } = await import("@segment/analytics-node");
    const client = new Analytics({ writeKey: key, host: url, flushAt: 5, flushInterval: 200 });
    client.on("error", failed);
    return {
      send: (probe) => client.track({ userId: "u1", event: "bought", properties: { probe, price: 9.5 } }),
      flush: () => {},
    };
  },
  async rudderstack() {
    const { default: Analytics } = await import("@rudderstack/rudder-sdk-node");
    const client = new Analytics(key, {
      dataPlaneUrl: url, flushAt: 5, flushInterval: 200, gzip: option === "gzip", logLevel: "silly", errorHandler: failed,
    });
    return {
      send: (probe) => client.track({ userId: "u1", event: "bought", properties: { probe, price: 9.5 } }),
      flush: () => client.flush().catch(() => {}),
    };
  },
  async jitsu() {
    const { jitsuAnalytics } = await import("@jitsu/js");
    const client = jitsuAnalytics({ host: url, writeKey: key, s2s: true, errorPolicy: (message, ...more) => failed(`${message} ${more}`) });
    client.setAnonymousId("u1");
    return {
      send: (probe) => client.track("bought", { probe, price: 9.5 }),
      flush: () => {},
    };
  },
  async posthog() {
    const { PostHog } = await import("posthog-node");
    const client = new PostHog(key, {
      host: url, flushAt: 5, flushInterval: 200, disableCompression: option !== "gzip",
    });
    client.on("error", failed);
    return {
      send: (probe) => client.capture({ distinctId: "u1", event: "bought", properties: { probe, price: 9.5 } }),
      flush: () => client.flush().catch(() => {}),
    };
  },
  async snowplow() {
    const { newTracker, buildSelfDescribingEvent } = await import("@snowplow/node-tracker");
    const tracker = newTracker(
      { namespace: "t", appId: "shop", encodeBase64: false },
      {
        endpoint: url, bufferSize: 5, eventMethod: option === "get" ? "get" : "post", connectionTimeout: 30000,
        customHeaders: { "X-Write-Key": key }, onRequestFailure: (data) => failed(data),
      },
    );
    tracker.setUserId("u1");
    const schema = "iglu:com.example/bought/jsonschema/1-0-0";
    return {
      send: (probe) => tracker.track(buildSelfDescribingEvent({ event: { schema, data: { probe, price: 9.5 } } })),
      flush: () => tracker.flush(),
    };
  },
};

const client = await makers[sdk]();
const input = createInterface({ input: process.stdin });
const ended = once(input, "close").then(() => true);
console.log("ready");
await once(input, "line");
for (let number = 0; number < Number(events); number += 1) {
  client.send(`${tag}-${String(number).padStart(4, "0")}`);
  await sleep(Number(pause) * 1000);
}
do {
  await client.flush();
} while (!(await Promise.race([ended, sleep(300, false)])));
console.log(JSON.stringify(errors));
process.exit(0);
