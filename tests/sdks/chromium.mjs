// A Chromium for the pages of `page.mjs`: it prints the address where they find it, and ends with its standard input. It
// finds no host but this one.

import { once } from "node:events";
import { chromium } from "playwright-core";

const executablePath = process.env.CHROMIUM || "/usr/bin/chromium";
const server = await chromium.launchServer({
  executablePath,
  host: "127.0.0.1",
  args: ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"],
});
console.log(server.wsEndpoint());
await once(process.stdin.resume(), "end");
await server.close();
process.exit(0);
