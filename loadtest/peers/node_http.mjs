// Node's own http server, one process.
//
//   node loadtest/peers/node_http.mjs PORT
import { createServer } from "node:http";
import { Batch } from "./record.mjs";

const batch = new Batch();

const server = createServer((request, response) => {
  if (request.method !== "POST" || request.url !== "/collect") {
    response.writeHead(404).end();
    return;
  }
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const { headers, socket } = request;
    const body = Buffer.concat(chunks).toString("utf8");
    batch.add(headers["x-forwarded-for"] ?? "", socket.remoteAddress, headers["user-agent"] ?? "", headers.cookie ?? "", body);
    response.end();
  });
});

server.listen(Number(process.argv[2]), "127.0.0.1", 1024);
