// Keeps a page fresh: the server renders it again, and the parts that differ are exchanged.

const QUIET_MS = 1000;
const AGAIN_MS = 3000;
let due = null;

export async function refresh() {
  due = null;
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (answer.redirected) location.assign(answer.url); // the session has run out
  if (!answer.ok || answer.redirected) return answer;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const now = fresh.getElementById(part.id);
    if (!now || now.innerHTML === part.dataset.rendered) continue;
    const chosen = [...part.querySelectorAll("input:checked")].map((box) => box.value);
    const held = part.contains(document.activeElement) ? document.activeElement.id : null;
    part.innerHTML = now.innerHTML;
    part.dataset.rendered = now.innerHTML;
    for (const box of part.querySelectorAll("input")) box.checked = chosen.includes(box.value);
    // Whoever works by keyboard stays where they were, or near.
    if (held !== null) (document.getElementById(held) ?? part.querySelector("[tabindex]"))?.focus();
  }
  return answer;
}

function soon() {
  due ??= setTimeout(refresh, QUIET_MS);
}

for (const part of document.querySelectorAll("[data-live]")) part.dataset.rendered = part.innerHTML;

function follow(address) {
  const source = new EventSource(address);
  source.addEventListener("event", soon);
  source.addEventListener("progress", (message) => {
    soon();
    if (JSON.parse(message.data).ended_at) source.close();
  });
  // A broken line is taken up by the browser; any answer but a stream is the last to it, and comes
  // from a server whose database restarts, too.
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(again, AGAIN_MS, address);
  });
}

async function again(address) {
  const answer = await refresh().catch(() => null);
  if (answer?.status !== 404) follow(address); // or it was deleted
}

for (const feed of document.querySelectorAll("[data-events]")) follow(feed.dataset.events);

for (const part of document.querySelectorAll("[data-poll]")) {
  setInterval(refresh, 1000 * Number(part.dataset.poll));
}
