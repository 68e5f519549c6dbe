// Answers for the app from this device. The publisher writes FILES above: the digest of each file.

const CACHE = "app";

/** Where a file is kept: a file that has not changed is not fetched again for a new app. */
function kept(digest) {
  return new Request(`/by-digest/${encodeURIComponent(digest)}`);
}

async function install() {
  const cache = await caches.open(CACHE);
  const files = Object.entries(FILES).map(async ([path, digest]) => {
    if (await cache.match(kept(digest))) return;
    // The browser compares the content with the digest, so no file is of another app.
    const response = await fetch(path, { cache: "no-cache", integrity: digest });
    if (!response.ok) throw new Error(`${path}: ${response.status}`);
    await cache.put(kept(digest), response);
  });
  await Promise.all(files);
}

async function activate() {
  const cache = await caches.open(CACHE);
  const needed = new Set(Object.values(FILES).map((digest) => kept(digest).url));
  const old = (await cache.keys()).filter(({ url }) => !needed.has(url));
  await Promise.all(old.map((request) => cache.delete(request)));
  await self.clients.claim();
}

async function answer(request, path) {
  const cache = await caches.open(CACHE);
  return (await cache.match(kept(FILES[path]))) ?? fetch(request);
}

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(activate()));
self.addEventListener("fetch", (event) => {
  const { origin, pathname } = new URL(event.request.url);
  if (origin === location.origin && event.request.method === "GET" && pathname in FILES) {
    event.respondWith(answer(event.request, pathname));
  }
});
