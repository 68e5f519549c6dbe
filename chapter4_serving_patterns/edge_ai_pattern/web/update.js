// Takes a new model only if it is signed, new, whole and right; until then, the old one answers.
// A device in Python has the same rules, in device/update.py.

import { open, passes } from "./model.js";

const PAYLOAD_TYPE = "application/vnd.edge-release+json";
const MAX_MODEL_BYTES = 1_000_000;
const MOST_ENVELOPE_BYTES = 100_000;

/** Why this device does not take a release. */
export class Refused extends Error {}

// --- the store -------------------------------------------------------------------------------

function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = request.oncomplete = () => resolve(request.result);
    request.onerror = request.onabort = () => reject(request.error);
  });
}

const database = new Promise((resolve, reject) => {
  const request = indexedDB.open("edge", 1);
  request.onupgradeneeded = () => {
    for (const name of ["files", "state"]) request.result.createObjectStore(name);
  };
  settled(request).then(resolve, reject);
});

async function read(store, key) {
  return settled((await database).transaction(store).objectStore(store).get(key));
}

/** Returns once the browser says that the change is on the disk. */
async function write(store, change) {
  const transaction = (await database).transaction(store, "readwrite", { durability: "strict" });
  change(transaction.objectStore(store));
  await settled(transaction);
}

/** Returns the release that is installed or, if its files are damaged, the one before. */
export async function load() {
  const pointer = await read("state", "pointer");
  for (const digest of pointer ? [pointer.current, pointer.before] : []) {
    try {
      if (digest) return await openRelease(digest);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
    }
  }
  return null;
}

async function openRelease(digest) {
  const files = await Promise.all(
    ["payload", "model", "metadata"].map((name) => read("files", `${digest}/${name}`)),
  );
  if (files.includes(undefined)) throw new Refused("self-test: a file is missing");
  const [payload, bytes, metadata] = files;
  const release = JSON.parse(text(payload));
  if ((await sha256(bytes)) !== release.model.sha256) {
    throw new Refused("self-test: the stored model is damaged");
  }
  return test(digest, release, bytes, metadata);
}

/** Returns a release with its model, if it computes what it should. */
async function test(digest, release, bytes, metadata) {
  let model;
  try {
    model = await open(bytes, JSON.parse(text(metadata)).labels);
  } catch (error) {
    throw typeof WebAssembly === "object" ? new Refused(`self-test: ${error.message}`) : error;
  }
  if (!(await passes(model, release.golden))) {
    throw new Refused("self-test: the golden rows give other probabilities");
  }
  return { digest, release, model };
}

async function install(payload, bytes, metadata) {
  const digest = await sha256(payload);
  const installed = await test(digest, JSON.parse(text(payload)), bytes, metadata);
  for (const [name, content] of Object.entries({ model: bytes, metadata, payload })) {
    await write("files", (files) => files.put(content, `${digest}/${name}`));
  }
  const { version, issued } = installed.release;
  const before = (await read("state", "pointer"))?.current;
  await point({ current: digest, before, newest: version, issued });
  return installed;
}

/** Replaces the pointer, and deletes the files to which it no longer leads. */
async function point(pointer) {
  await write("state", (state) => state.put(pointer, "pointer"));
  const kept = [pointer.current, pointer.before];
  await write("files", (files) => {
    files.getAllKeys().onsuccess = ({ target }) => {
      for (const key of target.result) if (!kept.includes(key.split("/")[0])) files.delete(key);
    };
  });
}

/** Goes back to the release before, and keeps refusing what is not newer than both. */
export function rollBack() {
  return navigator.locks.request("update", async () => {
    const pointer = await read("state", "pointer");
    if (!pointer?.before) throw new Refused("there is no model before this one");
    const installed = await openRelease(pointer.before);
    await point({ ...pointer, current: pointer.before, before: pointer.current });
    return installed;
  });
}

/** Returns the random name by which the publisher can count this device. */
async function name() {
  const fresh = hex(crypto.getRandomValues(new Uint8Array(16)));
  const known = await read("state", "name");
  if (!known) await write("state", (state) => state.put(fresh, "name"));
  return known ?? fresh;
}

export async function hasOneBefore() {
  return Boolean((await read("state", "pointer"))?.before);
}

// --- the checks ------------------------------------------------------------------------------

/** Returns the key that releases have to be signed with, or null if this browser knows no Ed25519. */
async function key() {
  const response = await fetch("/public_key");
  const bytes = Uint8Array.from((await response.text()).match(/../g), (pair) =>
    Number.parseInt(pair, 16),
  );
  try {
    return await crypto.subtle.importKey("raw", bytes, "Ed25519", false, ["verify"]);
  } catch (error) {
    if (error.name !== "NotSupportedError") throw error;
    return null;
  }
}

async function payloadOf(content, publicKey) {
  let payload, kind, signatures;
  try {
    const envelope = JSON.parse(text(content));
    payload = bytesOf(envelope.payload);
    kind = envelope.payloadType;
    signatures = envelope.signatures.map(({ sig }) => bytesOf(sig));
  } catch {
    throw new Refused("the envelope cannot be read");
  }
  const head = new TextEncoder().encode(`DSSEv1 ${kind.length} ${kind} ${payload.length} `);
  const signed = new Uint8Array([...head, ...payload]);
  for (const signature of signatures) {
    const fits = await crypto.subtle.verify("Ed25519", publicKey, signature, signed);
    if (fits && kind === PAYLOAD_TYPE) return payload;
  }
  throw new Refused("it is not signed by the publisher's key");
}

function check(release, pointer, now) {
  if (pointer && release.version < pointer.newest) {
    throw new Refused(`version ${release.version} is older than ${pointer.newest}`);
  }
  if (release.version === pointer?.newest) {
    throw new Refused(`version ${release.version} is signed a second time with other content`);
  }
  // A clock that shows a time before the last release was issued is wrong.
  const time = Math.max(now, pointer ? Date.parse(pointer.issued) : 0);
  if (time >= Date.parse(release.expires)) {
    const [expired, today] = [release.expires, new Date(time).toISOString()].map((at) =>
      at.slice(0, 10),
    );
    throw new Refused(`it has expired on ${expired}; this clock says ${today}`);
  }
  const size = Math.max(release.model.bytes, release.metadata.bytes);
  if (size > MAX_MODEL_BYTES)
    throw new Refused(`it is larger than ${MAX_MODEL_BYTES} bytes: ${size}`);
}

/** Tells whether a device is in the share of the fleet that gets a version first. */
export async function isAmong(share, device, version) {
  const digest = await crypto.subtle.digest(
    "SHA-256",
    new TextEncoder().encode(`${device}:${version}`),
  );
  return new DataView(digest).getUint32(0) / 2 ** 32 < share;
}

/** Returns a body, and at most a chunk more than is allowed. */
async function fetched(url, mostBytes) {
  const response = await fetch(url, { cache: "no-store" });
  if (!response.ok) throw new TypeError(`the publisher responds with status ${response.status}`);
  const chunks = [];
  let size = 0;
  for (const reader = response.body.getReader(); size <= mostBytes; ) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    size += value.length;
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

async function fetchedPart(part) {
  const content = await fetched(`/releases/${part.sha256}`, part.bytes);
  if (content.length < part.bytes) {
    throw new Refused(`it is cut off after ${content.length} of ${part.bytes} bytes`);
  }
  if ((await sha256(content)) !== part.sha256) throw new Refused("its SHA-256 is another one");
  return content;
}

/** Asks for the release that devices should have; returns null if this one has it already.
 *
 * One tab at a time: the next one then finds what the first has installed.
 */
export function update() {
  return navigator.locks.request("update", async () => {
    const publicKey = await key();
    if (!publicKey) throw new Refused("this browser cannot verify a signature (Ed25519)");
    const pointer = await read("state", "pointer");
    const device = await name();
    const asked = `/channel?device=${device}&version=${pointer?.newest ?? 0}`;
    const payload = await payloadOf(await fetched(asked, MOST_ENVELOPE_BYTES), publicKey);
    let release;
    try {
      release = JSON.parse(text(payload));
    } catch {
      throw new Refused("the payload cannot be read");
    }
    // It is installed, or is the newest and was left for the one before.
    const digest = await sha256(payload);
    if (digest === pointer?.current) return null;
    if (digest === pointer?.before && release.version === pointer.newest) return null;
    check(release, pointer, Date.now());
    if (!(await isAmong(release.share, device, release.version))) {
      throw new Refused(`version ${release.version} is for ${release.share * 100} % of the fleet`);
    }
    const bytes = await fetchedPart(release.model);
    return install(payload, bytes, await fetchedPart(release.metadata));
  });
}

function text(bytes) {
  return new TextDecoder().decode(bytes);
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

function hex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function sha256(bytes) {
  return hex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));
}
