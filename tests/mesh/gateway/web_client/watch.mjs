// Watches twins over gRPC-Web as a web page would, and prints what it hears, a line of JSON each.
//
//   node watch.mjs BASE_URL ORIGIN TOKEN DESCRIPTOR_SET REQUEST_JSON
//
// The first line that it reads calls the watch off; it goes away when its standard input ends.
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createFileRegistry, fromBinary, fromJsonString, toJson } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { fetchFrom } from "./page.mjs";

const [baseUrl, origin, token, descriptors, request] = process.argv.slice(2);
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(descriptors)));
const twins = registry.getService("twinmesh.twin.v1.TwinService");
const client = createClient(twins, createGrpcWebTransport({ baseUrl, fetch: fetchFrom(origin) }));

const off = new AbortController();
process.stdin.once("data", () => off.abort());
const gone = once(process.stdin, "end");

const say = (line) => console.log(JSON.stringify(line));
try {
  const { input, output } = twins.method.watchTwins;
  const options = { signal: off.signal, headers: token ? { authorization: `Bearer ${token}` } : {} };
  for await (const answer of client.watchTwins(fromJsonString(input, request), options)) {
    say(toJson(output, answer, { registry }));
  }
  say({ ended: true });
} catch (error) {
  const failure = ConnectError.from(error);
  const reasons = failure.findDetails(registry.getMessage("google.rpc.ErrorInfo")).map((info) => info.reason);
  const trace = failure.metadata.get("x-trace-id");
  say({ failed: Code[failure.code], message: failure.rawMessage, reasons, trace });
}
await gone;
