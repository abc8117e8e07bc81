// `fetch` as the script of a web page has it: of another origin than the API's, it is asked for leave
// first, and sees only what it was told it may see. Node's own fetch does neither.
const SIMPLE_HEADERS = new Set(["accept", "accept-language", "content-language"]);
const SIMPLE_METHODS = new Set(["GET", "HEAD", "POST"]);
const ALWAYS_SEEN = [
  "cache-control",
  "content-language",
  "content-length",
  "content-type",
  "expires",
  "last-modified",
  "pragma",
];

export function fetchFrom(origin) {
  return async (url, init) => {
    const headers = new Headers(init.headers);
    await askLeave(url, origin, init.method, [...headers.keys()].filter((name) => !SIMPLE_HEADERS.has(name)));
    headers.set("origin", origin);
    const answer = await fetch(url, { ...init, headers });
    requireOrigin(answer, origin);
    const seen = new Set([...ALWAYS_SEEN, ...listed(answer, "access-control-expose-headers")]);
    const visible = [...answer.headers].filter(([name]) => seen.has(name));
    return new Response(answer.body, { status: answer.status, headers: visible });
  };
}

async function askLeave(url, origin, method, names) {
  const headers = {
    origin,
    "access-control-request-method": method,
    "access-control-request-headers": names.sort().join(","),
  };
  const answer = await fetch(url, { method: "OPTIONS", headers });
  requireOrigin(answer, origin);
  const methods = listed(answer, "access-control-allow-methods");
  const allowed = listed(answer, "access-control-allow-headers");
  const refused = names.filter((name) => !allowed.includes(name));
  if (!SIMPLE_METHODS.has(method) && !methods.includes(method.toLowerCase())) refused.push(method);
  if (!answer.ok || refused.length > 0) throw new TypeError(`the preflight refuses ${refused}`);
}

function requireOrigin(answer, origin) {
  if (answer.headers.get("access-control-allow-origin") !== origin) {
    throw new TypeError(`${origin} may not read this`);
  }
}

function listed(answer, header) {
  return (answer.headers.get(header) ?? "").split(",").map((name) => name.trim().toLowerCase());
}
