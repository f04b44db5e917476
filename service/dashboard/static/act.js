// Does what a button says: asks where work would be lost, and shows the sentence of a refusal.

import { refresh } from "./live.js";

const element = (id) => document.getElementById(id);
let busy = false; // a second click, or a key held down, asks for nothing more

function say(where, sentence) {
  where.textContent = sentence;
  where.hidden = !sentence;
}

// The page may have been drawn anew meanwhile: who closes a dialog is back at the button of that name.
function show(dialog) {
  const opener = document.activeElement.id;
  dialog.showModal();
  dialog.addEventListener("close", () => element(opener)?.focus(), { once: true });
}

async function ask(question) {
  const dialog = element("ask");
  element("ask-what").textContent = question;
  dialog.returnValue = ""; // Escape leaves it as it was
  show(dialog);
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  return dialog.returnValue === "yes";
}

// Sends one request; null if it was refused, which is said.
async function send(method, address, body, where) {
  say(where, "");
  const json = body && { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  try {
    const answer = await fetch(address, { method, ...json });
    if (answer.status === 401) location.reload(); // the session has run out: to the login page
    if (answer.ok) return answer;
    const problem = await answer.json().catch(() => ({}));
    say(where, problem.detail ?? `The service answered ${answer.status}.`);
  } catch {
    say(where, "The service does not answer; nothing has been changed, as far as this page knows.");
  }
  return null;
}

async function alone(work) {
  if (busy) return;
  busy = true;
  try {
    await work();
  } finally {
    busy = false;
  }
}

async function act({ act: method, to, ask: question, then }) {
  if (question && !(await ask(question))) return;
  const answer = await send(method, to, null, element("said"));
  if (answer && then) location.assign(then);
  else await refresh();
}

async function clone(form) {
  const changes = { budget: { ratio: Number(element("clone-share").value) / 100 } };
  changes.name = element("clone-name").value.trim() || null;
  if (!("warm" in element("do-clone").dataset)) changes.warm_start = null;
  const answer = await send("POST", form.dataset.clone, changes, element("clone-said"));
  if (answer) location.assign((await answer.json()).links.page);
}

document.addEventListener("click", (event) => {
  const { act: method, opens, says, closes } = event.target.dataset ?? {};
  if (method) alone(() => act({ ...event.target.dataset }));
  if (opens) {
    say(element(`${opens}-what`), says);
    show(element(opens));
  }
  if (closes) element(closes).close();
});

document.addEventListener("submit", (event) => {
  if (!event.target.dataset.clone) return;
  event.preventDefault();
  alone(() => clone(event.target));
});
