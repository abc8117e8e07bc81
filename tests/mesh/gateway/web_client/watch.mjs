// Watches twins over gRPC-Web as a web page would, and prints what it hears, a line of JSON each.
//
//   node watch.mjs BASE_URL TOKEN DESCRIPTOR_SET REQUEST_JSON
//
// It leaves when its standard input ends.
import { readFileSync } from "node:fs";
import { createFileRegistry, fromBinary, fromJsonString, toJson } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

const [baseUrl, token, descriptors, request] = process.argv.slice(2);
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(descriptors)));
const twins = registry.getService("twinmesh.twin.v1.TwinService");
const client = createClient(twins, createGrpcWebTransport({ baseUrl }));
const leaving = new AbortController();
process.stdin.on("end", () => leaving.abort()).resume();

const say = (line) => console.log(JSON.stringify(line));
try {
  const { input, output } = twins.method.watchTwins;
  const options = { signal: leaving.signal, headers: token ? { authorization: `Bearer ${token}` } : {} };
  for await (const answer of client.watchTwins(fromJsonString(input, request), options)) {
    say(toJson(output, answer, { registry }));
  }
  say({ ended: true });
} catch (error) {
  const failure = ConnectError.from(error);
  const info = registry.getMessage("google.rpc.ErrorInfo");
  const reasons = info ? failure.findDetails(info).map((detail) => detail.reason) : [];
  say({ failed: Code[failure.code], reasons });
}
process.exit(0);
