import { h } from "./dashboard/dom.js";

const byId = (id) => document.getElementById(id);
const form = byId("form"), prompt = byId("prompt"), send = byId("send"), stop = byId("stop"), anew = byId("anew");

/** By model: its conversation so far, and where it is shown. */
const talks = new Map();
let stopping = null;

const told = await (await fetch("v1/models")).json();
for (const { name, who } of told.models) {
  const log = h("div", { role: "log", "aria-label": `Conversation with ${name}` });
  byId("models").append(h("section", {}, h("h2", {}, name), h("p", { class: "soft" }, who), log));
  talks.set(name, { turns: [], log });
}
byId("path").textContent = told.run;
byId("temperature").value = told.temperature;
byId("max-tokens").value = told.max_tokens;
document.title = `${told.run} · proxykd chat`;

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!stopping && prompt.value.trim()) ask(prompt.value.trim());
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
stop.addEventListener("click", () => stopping?.abort());
anew.addEventListener("click", () => {
  for (const talk of talks.values()) {
    talk.turns = [];
    talk.log.replaceChildren();
  }
  complain("");
  prompt.focus();
});

/** Sends the prompt to every model and shows the replies as they come. What was said when they stop, for whatever reason, stands. */
async function ask(text) {
  stopping = new AbortController();
  busy(true);
  complain("");
  let replies = null;
  try {
    const response = await fetch("v1/answers", { method: "POST", headers: { "Content-Type": "application/json" }, body: question(text), signal: stopping.signal });
    if (!response.ok) throw new Error((await response.json().catch(() => null))?.error?.message ?? `${response.status} ${response.statusText}`);
    prompt.value = "";
    replies = begin(text);
    for await (const line of lines(response.body)) replies.get(line.model).add(line);
  } catch (error) {
    if (error.name !== "AbortError") complain(replies ? `The replies broke off: ${error.message}` : error.message);
  }
  for (const [name, reply] of replies ?? []) talks.get(name).turns.push({ role: "user", content: text }, { role: "assistant", content: reply.finish() });
  stopping = null;
  busy(false);
  prompt.focus();
}

function question(text) {
  const system = byId("system").value.trim();
  const before = system ? [{ role: "system", content: system }] : [];
  const conversations = Object.fromEntries([...talks].map(([name, { turns }]) => [name, [...before, ...turns, { role: "user", content: text }]]));
  return JSON.stringify({ conversations, temperature: byId("temperature").valueAsNumber, max_tokens: byId("max-tokens").valueAsNumber });
}

/** A reply a model, each with its place on the page. */
function begin(text) {
  return new Map([...talks].map(([name, { log }]) => {
    const reply = new Reply();
    log.append(h("p", { class: "asked" }, h("span", { class: "hidden" }, "You: "), text), reply.element, reply.note);
    return [name, reply];
  }));
}

class Reply {
  constructor() {
    this.text = "";
    this.ended = null;
    this.element = h("p", { class: "replied" });
    this.note = h("p", { class: "told" }, "…");
  }

  add({ text, tokens, ended }) {
    const atEnd = innerHeight + scrollY >= document.body.scrollHeight - 40;
    this.text += text;
    this.ended = ended;
    this.element.append(text);
    this.tokens = tokens;
    this.note.textContent = this.told();
    if (atEnd) scrollTo(0, document.body.scrollHeight);
  }

  told() {
    return `${this.tokens} token${this.tokens === 1 ? "" : "s"}${this.ended === "length" ? ", cut" : ""}`;
  }

  finish() {
    if (!this.ended) this.note.textContent = this.tokens ? `${this.told()}, stopped` : "stopped";
    return this.text;
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const found = (pending + value).split("\n");
    pending = found.pop();
    for (const line of found) yield JSON.parse(line);
  }
}

function busy(on) {
  send.disabled = anew.disabled = on;
  stop.disabled = !on;
  for (const { log } of talks.values()) log.setAttribute("aria-busy", on);
  byId("link").textContent = on ? "answering" : "";
}

function complain(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}
