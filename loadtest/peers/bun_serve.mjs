// Bun's own server, one process.
//
//   bun loadtest/peers/bun_serve.mjs PORT
import { Batch } from "./record.mjs";

const batch = new Batch();

Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[2]),
  async fetch(request, server) {
    if (request.method !== "POST" || new URL(request.url).pathname !== "/collect") {
      return new Response(null, { status: 404 });
    }
    const body = await request.text();
    const { headers } = request;
    const peer = server.requestIP(request)?.address ?? "";
    batch.add(headers.get("x-forwarded-for") ?? "", peer, headers.get("user-agent") ?? "", headers.get("cookie") ?? "", body);
    return new Response();
  },
});
