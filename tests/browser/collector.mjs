// A real collector, and a gate before it that can refuse, lose answers or hang.
//
// Owns one process with a folder of its own, and reads what it stored once it has drained. Never ends a process that it
// did not start.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import http from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { gunzipSync } from "node:zlib";

const REPOSITORY = new URL("../..", import.meta.url).pathname;
const PYTHON = process.env.PYTHON || join(REPOSITORY, ".venv/bin/python");
const READY_MS = 20000;

export class Collector {
  static async start(settings = {}) {
    const made = new Collector();
    made.settings = settings;
    made.folder = await mkdtemp(join(tmpdir(), "estat-ingest-"));
    made.port = await freePort();
    await made.run();
    return made;
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  async run() {
    this.process = spawn(PYTHON, ["-m", "ingest", "serve"], {
      cwd: this.folder,
      env: {
        PATH: process.env.PATH,
        PYTHONPATH: REPOSITORY,
        HTTP_ADDR: `127.0.0.1:${this.port}`,
        FLUSH_INTERVAL: "1s",
        LOG_LEVEL: "error",
        ...this.settings,
      },
      stdio: "inherit",
    });
    this.ended = once(this.process, "exit");
    const until = Date.now() + READY_MS;
    for (;;) {
      const answer = await fetch(`${this.url}/ready`).catch(() => null);
      if (answer?.ok) return;
      if (Date.now() > until || this.process.exitCode !== null) throw new Error("the collector does not start");
      await pause(50);
    }
  }

  async kill() {
    this.process.kill("SIGKILL");
    await this.ended;
  }

  // Ends the process, and returns the events that were stored, as the browser made them.
  async stop() {
    this.process.kill("SIGTERM");
    await this.ended;
    const names = await readdir(this.folder, { recursive: true });
    const objects = names.filter((name) => name.startsWith("data/objects/raw/") && name.endsWith(".jsonl.gz"));
    const texts = await Promise.all(objects.map(async (name) => gunzipSync(await readFile(join(this.folder, name)))));
    await rm(this.folder, { recursive: true, force: true });
    const lines = texts.flatMap((text) => text.toString().split("\n")).filter(Boolean);
    return lines.map((line) => {
      const { body } = JSON.parse(line);
      return body.startsWith("{") ? JSON.parse(body) : { event: body };
    });
  }
}

// A proxy on the way to a collector: `how(number)` says what becomes of each POST.
//
//   pass     it is forwarded
//   refuse   503 with `Retry-After: 1`
//   lose     it is forwarded, and the connection ends before the answer
//   hang     nothing is answered
//   portal   200 with a page, as a network's login has it
//   misled   400 in words, as a proxy has it for a fault of its own
export class Gate {
  static async start(collector, how) {
    const made = new Gate();
    made.posts = [];
    made.most = 0;
    let open = 0;
    made.server = http.createServer((request, response) => {
      const number = request.method === "POST" ? made.posts.push(Date.now()) : 0;
      const fate = number ? how(number) : "pass";
      open += number ? 1 : 0;
      made.most = Math.max(made.most, open);
      response.on("close", () => (open -= number ? 1 : 0));
      const origin = {
        "Access-Control-Allow-Origin": request.headers.origin ?? "*",
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Expose-Headers": "Retry-After",
      };
      if (["refuse", "portal", "misled"].includes(fate)) {
        request.resume().on("end", () => {
          if (fate === "misled") response.writeHead(400, { ...origin, "Content-Type": "text/plain" }).end("bad request\n");
          else if (fate === "refuse") response.writeHead(503, { ...origin, "Retry-After": "1" }).end("later\n");
          else response.writeHead(200, { ...origin, "Content-Type": "text/html" }).end("<h1>Please log in</h1>");
        });
        return;
      }
      if (fate === "hang") return request.resume();
      const { host, ...headers } = request.headers;
      const forward = http.request(
        { host: "127.0.0.1", port: collector.port, method: request.method, path: request.url, headers },
        async (answer) => {
          if (fate === "lose") return answer.resume().on("end", () => request.socket.destroy());
          response.writeHead(answer.statusCode, answer.headers);
          answer.pipe(response);
        },
      );
      forward.on("error", () => request.socket.destroy());
      request.pipe(forward);
    });
    await listen(made.server);
    return made;
  }

  get url() {
    return `http://127.0.0.1:${this.server.address().port}`;
  }

  stop() {
    this.server.closeAllConnections();
    this.server.close();
  }
}

// A site on `localhost`: another origin, and another site, than the collector on 127.0.0.1.
export class Site {
  static async start() {
    const made = new Site();
    made.pages = new Map();
    made.server = http.createServer((request, response) => {
      const page = made.pages.get(request.url.split("?")[0]);
      if (!page) return response.writeHead(404).end();
      response.writeHead(200, { "Content-Type": "text/html; charset=utf-8", ...page.headers }).end(page.html);
    });
    await listen(made.server);
    return made;
  }

  get url() {
    return `http://localhost:${this.server.address().port}`;
  }

  // A page with some tags; returns its address.
  page(path, tags, headers = {}) {
    this.pages.set(path, { html: `<!doctype html><title>${path}</title><link rel="icon" href="data:,">${tags}`, headers });
    return this.url + path;
  }

  stop() {
    this.server.closeAllConnections();
    this.server.close();
  }
}

const listen = (server) => new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));

const freePort = async () => {
  const server = http.createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address();
  await new Promise((resolve) => server.close(resolve));
  return port;
};
