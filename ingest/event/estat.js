// The browser's half of the collector: events from a page, at least once each, with no dependency.
//
//   <script async src="https://collect.example.com/estat.js" data-auto></script>
//   estat.track("signup", { plan: "free" })
//
// Owns the queue of a site in localStorage, one entry an event, and the sending of it. Promises that an event leaves the
// queue only when the collector has said what became of it, or has taken others between two refusals of it; that each has
// an `id`, by which a reader drops doubles; that one tab sends at a time, where the browser has Web Locks; and that no wait
// and no store is without a bound. Never throws into the page, and never sets a cookie.
//
// A page that is closed in the middle leaves a request that the browser finishes. Nobody reads its answer, so the next page
// sends those events again, under the same ids.
//
// The server takes out the lines that are comments, and puts its own paths into the two constants below.
// A promise runs this at once, and what it throws is no error of the page's.
new Promise(() => {
  "use strict";
  const SCRIPT = "/estat.js";
  const BATCH = "/collect/batch";
  // Browsers let requests with `keepalive` have 64 KiB at once, of all scripts of a page together.
  const REQUEST_BYTES = 60000;
  const EVENT_BYTES = REQUEST_BYTES - 100;
  const QUEUE_EVENTS = 500;
  const QUEUE_CHARACTERS = 500000;
  // Short, because an answer that comes before the page is left saves a double; what comes meanwhile goes together anyway.
  const GATHER_MS = 50;
  const AGAIN_MS = 500;
  // Other tabs leave an event so long to the tab that it came from, and a tab that has sent holds the others back so long:
  // browsers show to one tab what another has stored or removed a moment later, and what they would send is sent already.
  const OTHERS_MS = 3000;
  const SEEN_MS = 200;
  const ANSWER_MS = 30000;
  // The tab that has the lock may be frozen. A sound one has it as long only if it has much to send.
  const LOCK_MS = 45000;
  const LONGEST_WAIT_MS = 600000;
  // By which an event may be refused for what it is. Proxies have them for their own reasons too.
  const REFUSALS = [400, 403, 413, 422];
  const ENTRY = "estat:";
  const UNTIL = "estat-until";

  const early = (window.estat && window.estat.q) || [];
  if (window.estat && window.estat.loaded) return;
  // For a page that calls, should there be no more than this.
  window.estat = { track: () => "" };
  const script = document.currentScript || document.querySelector(`script[src*="${SCRIPT}"]`);
  const told = script ? script.dataset : {};
  // The part of the address before SCRIPT is the collector's, so that it may stand behind a prefix. A script that stands in
  // the page itself has no address.
  const source = ((script && script.src) || document.baseURI).split(/[?#]/)[0];
  const base = source.endsWith(SCRIPT) ? source.slice(0, -SCRIPT.length) : "";
  const target = new URL(told.to || new URL(base + BATCH, source), document.baseURI);
  if (told.key) target.searchParams.set("k", told.key);
  const quiet =
    ("gpc" in told && navigator.globalPrivacyControl) || ("dnt" in told && navigator.doNotTrack === "1");

  // Not again and again: a browser may refuse for ever.
  let last = "";
  const warn = (error) => {
    if (last !== (last = String(error))) console.warn("estat:", error);
  };

  // The queue. Each event is an entry of its own, so that tabs add and remove without reading what others write.

  // For what the browser does not let us store: it lives as long as the page.
  const held = new Map();
  let stored = null;
  try {
    stored = localStorage;
  } catch {}
  const keys = () =>
    [...(stored ? Object.keys(stored) : []), ...held.keys()].filter((key) => key.startsWith(ENTRY)).sort();
  const read = (key) => held.get(key) || (stored && stored.getItem(key)) || "";
  const remove = (key) => {
    held.delete(key);
    mine.delete(key);
    doubtful.delete(key);
    if (stored) stored.removeItem(key);
  };
  const write = (key, text) => {
    try {
      stored.setItem(key, text);
      held.delete(key);
    } catch {
      held.set(key, text);
    }
  };
  // The oldest go when there is no room.
  const makeRoom = (characters) => {
    const there = keys();
    let events = there.length;
    let size = there.reduce((sum, key) => sum + read(key).length, characters);
    for (const key of there) {
      if (events < QUEUE_EVENTS && size <= QUEUE_CHARACTERS) return;
      events -= 1;
      size -= read(key).length;
      remove(key);
    }
  };

  // Events.

  // Those of this page that have no answer yet.
  const mine = new Set();
  let number = 0;
  const track = (event, props) => {
    if (quiet) return "";
    try {
      const id = [...crypto.getRandomValues(new Uint8Array(16))].map((b) => (b + 256).toString(16).slice(1)).join("");
      const at = Date.now();
      const text = JSON.stringify({ id, event, at, url: location.href.split("#")[0], ref: document.referrer, props });
      if (sizeOf(text) > EVENT_BYTES) throw new Error("an event of more than 60 KB");
      makeRoom(text.length);
      const key = `${ENTRY}${at * 1000 + (number++ % 1000)}:${id}`;
      mine.add(key);
      write(key, text);
      soon(GATHER_MS);
      return id;
    } catch (error) {
      warn(error);
      return "";
    }
  };
  const encoder = new TextEncoder();
  const sizeOf = (text) => encoder.encode(text).length;
  let seen = "";
  const pageView = () => {
    const url = location.href.split("#")[0];
    if (url !== seen) track("pageview", { title: document.title, from: seen || undefined });
    seen = url;
  };

  // Sending.

  // Not the one that somebody sets: waits within the page go by it.
  const clock = () => performance.now();
  let timer = 0;
  let due = Infinity;
  let sending = false;
  let failures = 0;
  // Halved when a request is refused as it is, until the event is found that may be the reason.
  let most = QUEUE_EVENTS;
  // How many requests the collector has answered as itself; and of each event that was refused alone, how many those were.
  let answered = 0;
  const doubtful = new Map();
  let doubtfulAt = 0;
  // What is under way, and how many bytes that is.
  const flying = new Set();
  let flyingBytes = 0;

  const soon = (ms) => {
    ms = Math.max(ms, restOfWait());
    const at = clock() + ms;
    if (at >= due) return;
    clearTimeout(timer);
    due = at;
    timer = setTimeout(send, ms);
  };
  // All tabs wait together. A clock that was set back makes no wait longer than the longest.
  const restOfWait = () => {
    const rest = Number(read(UNTIL)) - Date.now();
    return rest > 0 && rest <= LONGEST_WAIT_MS ? rest : 0;
  };
  const take = (from) => {
    let bytes = REQUEST_BYTES - flyingBytes;
    const batch = [];
    for (const key of from) {
      const text = read(key);
      if (flying.has(key)) continue;
      // Another tab has sent it; or it is none of ours, and would be in the way for ever.
      if (!text || sizeOf(text) > EVENT_BYTES) {
        remove(key);
        continue;
      }
      // The clock of the sender at sending tells a reader how wrong it is.
      const item = `${text.slice(0, -1)},"sentAt":${Date.now()}}`;
      bytes -= sizeOf(item) + 1;
      if (bytes < 1 || batch.length >= most) break;
      batch.push([key, item]);
    }
    return batch;
  };
  const within = (ms) => {
    const stop = new AbortController();
    setTimeout(() => stop.abort(), ms);
    return stop.signal;
  };
  const bodyOf = (batch) => `[${batch.map(([, item]) => item).join(",")}]`;
  // Sends one request; returns whether the next may follow at once.
  const post = async (batch, leaving) => {
    const body = bodyOf(batch);
    const size = sizeOf(body);
    batch.forEach(([key]) => flying.add(key));
    flyingBytes += size;
    const landed = () => {
      batch.forEach(([key]) => flying.delete(key));
      flyingBytes -= size;
      return true;
    };
    let wait = 0;
    let again = false;
    try {
      // Another script may have used up what `keepalive` may have: every other try does without.
      const answer = await fetch(target, {
        method: "POST",
        body,
        credentials: "include",
        keepalive: leaving || failures % 2 === 0,
        signal: within(ANSWER_MS),
      });
      const became = await answer.json().catch(() => ({}));
      // A status is no evidence, and a page in the place of the collector says 200 too.
      const known = became.rejected && became.accepted + became.rejected.length === batch.length;
      if (known) {
        batch.forEach(([key]) => remove(key));
        answered += 1;
        most = QUEUE_EVENTS;
        failures = doubtfulAt = 0;
        return landed();
      }
      if (REFUSALS.includes(answer.status)) {
        most = batch.length >> 1 || 1;
        if (batch.length > 1) return landed();
        const [[key]] = batch;
        // Others were taken since it was refused: it is this one.
        if (answered > doubtful.get(key)) {
          remove(key);
          return landed();
        }
        again = doubtful.has(key);
        if (!again) doubtful.set(key, answered);
      }
      wait = Number(answer.headers.get("Retry-After")) * 1000 || 0;
    } catch {}
    // A page that is left is told of a failure where the browser goes on to send; and no timer of it runs any more.
    setTimeout(landed, AGAIN_MS);
    failures += 1;
    wait = Math.max(wait, Math.min(500 * 2 ** failures, LONGEST_WAIT_MS / 2)) * (1 + Math.random() / 2);
    wait = Math.min(wait, LONGEST_WAIT_MS);
    // An event that was refused before keeps no other waiting.
    if (again) doubtfulAt = clock() + wait;
    else write(UNTIL, String(Math.round(Date.now() + wait)));
    return false;
  };
  // A clock that was set back, or a key of no form, makes it anybody's.
  const isOurs = (key) => mine.has(key) || !(Math.abs(Date.now() - parseInt(key.slice(ENTRY.length)) / 1000) < OTHERS_MS);
  const isFresh = (key) => !doubtful.has(key);
  // What was refused alone goes alone, behind the others: the collector's answer to them tells whose fault it is.
  const next = () => {
    const ours = keys().filter(isOurs);
    const fresh = take(ours.filter(isFresh));
    return fresh.length || clock() < doubtfulAt ? fresh : take(ours).slice(0, 1);
  };
  const sendAll = async () => {
    while (!restOfWait()) {
      const batch = next();
      if (!batch.length || !(await post(batch, false))) return;
      await new Promise((seen) => setTimeout(seen, SEEN_MS));
    }
  };
  // Whether the lock is waited for. Once that was in vain it is only taken if it is free, until it is.
  let patient = true;
  const begin = (lock) => {
    patient = !!lock;
    return sendAll();
  };
  const send = async () => {
    due = Infinity;
    if (sending || !keys().length) return;
    sending = true;
    try {
      // Without a store there is nothing to share, and such pages may not have locks.
      await (stored && navigator.locks
        ? navigator.locks.request("estat", patient ? { signal: within(LOCK_MS) } : { ifAvailable: true }, begin)
        : sendAll());
    } catch (error) {
      warn(error);
      patient = false;
      await sendAll().catch(warn);
    }
    sending = false;
    if (keys().length) soon(keys().some(isFresh) ? AGAIN_MS : Math.max(AGAIN_MS, doubtfulAt - clock()));
  };
  // No lock can be waited for here. The events of other pages are left to others.
  const leave = () => {
    const batch = take([...mine].filter(isFresh));
    if (!batch.length) return;
    if ("keepalive" in Request.prototype) {
      post(batch, true);
      return;
    }
    // It tells no answer: if the page is still there then, they go again.
    navigator.sendBeacon(target, bodyOf(batch));
    batch.forEach(([key]) => flying.add(key));
    setTimeout(() => batch.forEach(([key]) => flying.delete(key)), OTHERS_MS);
  };

  // When.

  window.estat = { track, loaded: true };
  if (quiet) return keys().forEach(remove);
  addEventListener("pagehide", leave);
  addEventListener("online", () => {
    remove(UNTIL);
    soon(0);
  });
  addEventListener("storage", ({ key, newValue }) => {
    if (key && key.startsWith(ENTRY) && newValue) soon(OTHERS_MS);
  });
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "hidden") leave();
    else soon(0);
  });
  early.forEach((call) => track(...call));
  if (keys().length) soon(GATHER_MS);
  if ("auto" in told) {
    const push = history.pushState;
    history.pushState = function (...given) {
      push.apply(this, given);
      pageView();
    };
    addEventListener("popstate", pageView);
    addEventListener("pageshow", ({ persisted }) => {
      if (!persisted) return;
      seen = "";
      pageView();
    });
    // A page that is loaded in advance may never be seen.
    if (document.prerendering) document.addEventListener("prerenderingchange", pageView, { once: true });
    else pageView();
  }
}).catch((error) => console.warn("estat:", error));
