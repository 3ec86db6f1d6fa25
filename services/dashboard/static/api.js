/** The versioned JSON API (docs/api.md), or the answers that a report carries with it. */
const embedded = document.getElementById("report");
const answers = embedded ? JSON.parse(embedded.textContent) : null;

/** The run that this page is a report of; null where a server answers. */
export const reportOf = answers ? answers.report : null;

const KEY = "proxykd-key";
const SILENCE_MS = 40000;

export async function get(path, query = {}) {
  if (answers) {
    if (path in answers) return answers[path];
    throw new Error("This is not part of the report; open the dashboard for it.");
  }
  return (await ask(path, { query })).json();
}

export async function text(path) {
  return (await ask(path, {})).text();
}

export async function post(path, body) {
  const options = { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  return (await ask(path, options)).json();
}

/** Hands every message of a live stream to `onMessage(kind, facts)`; comes back after a lost connection and misses no event. */
export function follow(path, after, onMessage, onLink) {
  let last = after;
  let stopped = false;
  let controller = new AbortController();
  const run = async () => {
    let pause = 500;
    while (!stopped) {
      controller = new AbortController();
      const silence = new Alarm(SILENCE_MS, () => controller.abort());
      try {
        const response = await ask(path, { headers: { "Last-Event-ID": String(last) }, signal: controller.signal });
        onLink(true);
        pause = 500;
        for await (const message of messages(response.body, silence)) {
          if (message.id) last = Number(message.id);
          if (message.event) onMessage(message.event, JSON.parse(message.data));
        }
      } catch (error) {
        if (!stopped && error.status && error.status < 500) throw error;
      } finally {
        silence.off();
      }
      if (stopped) return;
      onLink(false);
      await new Promise((resume) => setTimeout(resume, pause));
      pause = Math.min(2 * pause, 8000);
    }
  };
  run();
  return () => {
    stopped = true;
    controller.abort();
  };
}

async function ask(path, { query = {}, headers = {}, ...options }) {
  const url = new URL(`../v1/${path}`, document.baseURI);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  const key = sessionStorage.getItem(KEY);
  const sent = key ? { ...headers, Authorization: `Bearer ${key}` } : headers;
  const response = await fetch(url, { ...options, headers: sent });
  if (response.status === 401) {
    await askForKey(key || null);
    return ask(path, { query, headers, ...options });
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw Object.assign(new Error(told?.error?.message ?? `${response.status} ${response.statusText}`), { status: response.status });
}

let asking = null;

/** Asks once for all requests that wait; `refused` is the key that was sent, if any. */
function askForKey(refused) {
  if (refused !== null && sessionStorage.getItem(KEY) !== refused) return null; // another request has a new one already
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key");
    document.getElementById("key-wrong").hidden = refused === null;
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, dialog.querySelector("input").value);
      dialog.querySelector("form").reset();
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

async function* messages(body, silence) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    silence.again();
    const blocks = (pending + value).replaceAll("\r", "").split("\n\n");
    pending = blocks.pop();
    for (const block of blocks) {
      const message = {};
      for (const line of block.split("\n")) {
        const [, field, content] = /^(\w+): ?(.*)$/.exec(line) ?? [];
        if (field) message[field] = field in message ? `${message[field]}\n${content}` : content;
      }
      yield message;
    }
  }
}

class Alarm {
  constructor(after, ring) {
    this.after = after;
    this.ring = ring;
    this.again();
  }

  again() {
    clearTimeout(this.timer);
    this.timer = setTimeout(this.ring, this.after);
  }

  off() {
    clearTimeout(this.timer);
  }
}
