// What record.py does, for the peers in JavaScript: the JSON line, and gzip of every 5,000, on a thread of the runtime.
import { gzip } from "node:zlib";

const BATCH = 5000;

export class Batch {
  lines = [];
  lastSize = 0;

  add(forwardedFor, peer, userAgent, cookie, body) {
    const address = forwardedFor.slice(forwardedFor.lastIndexOf(",") + 1).trim() || peer;
    const ts = Math.floor(Date.now() / 1000);
    this.lines.push(JSON.stringify({ ts, ip: address, user_agent: userAgent, cookie, body }));
    if (this.lines.length === BATCH) {
      const sealed = this.lines;
      this.lines = [];
      gzip(sealed.join("\n") + "\n", { level: 1 }, (error, out) => {
        if (error) throw error;
        this.lastSize = out.length;
      });
    }
  }
}
