import { h, problem } from "./dom.js";
import { get, post, reportOf } from "./api.js";
import { number, percent, whole } from "./format.js";

const TOP_K = 20;
const WITHOUT = [404, 503]; // no proxy behind this page, or none just now

/** What a hard label hides: the proxy's distribution at each token of any completion, adapters side by side. */
export async function exploreView(id) {
  if (reportOf) throw new Error("A report cannot ask the proxy; open the dashboard while the run or proxykd serve answers.");
  const crumbs = [["runs", "#/"], [id, `#/runs/${id}`], ["explore"]];
  const [answer, run] = await Promise.all([get("proxy/adapters").catch((error) => error), get(`runs/${id}`)]);
  if (WITHOUT.includes(answer.status)) return { crumbs, element: howToAsk(run) };
  if (answer instanceof Error) throw answer;
  const { records } = await get(`runs/${id}/trust`, { limit: 1 });
  return { crumbs, element: new Explorer(answer.adapters, answer.default, records[0]).element };
}

/** The dashboard reads files; the proxy has to be started by who sees it. */
function howToAsk({ run, status, directory }) {
  const finished = status.state === "finished";
  const path = `/dashboard/#/runs/${run.id}/explore`;
  if (status.served_at) {
    return h("div", {}, h("h1", {}, "What a hard label hides"), h("section", {},
      h("p", {}, "The explorer asks the run's proxy, which is served: ", h("a", { href: status.served_at + path }, status.served_at + path))));
  }
  return h("div", {}, h("h1", {}, "What a hard label hides"), h("section", {},
    h("p", {}, "The explorer asks the run's proxy what else it might have said at each token. This dashboard reads the run's files alone: no proxy answers here."),
    h("p", {}, finished ? "Start it in a terminal, where the run lies:" : "While the run is at work, the address that its terminal names has this page too, from the first round to the scoring. Once it has finished:"),
    h("pre", { class: "text-block" }, `proxykd serve ${directory}`),
    h("p", {}, "It names its address, by default ", h("code", {}, `http://127.0.0.1:8000${path}`), ", and this page is there with an example to begin with.")));
}

class Explorer {
  constructor(adapters, aligned, example) {
    this.temperature = 1;
    this.at = 0;
    this.adapters = adapters;
    this.aligned = aligned ?? adapters.at(-1).name;
    this.chosen = new Set([adapters[0].name, this.aligned]);
    this.prompt = h("textarea", { rows: "3", required: true }, example?.prompt ?? "");
    this.completion = h("textarea", { rows: "3" }, example?.completion ?? "");
    this.out = h("div");
    const boxes = adapters.map((card) => h("label", { class: "inline" },
      h("input", { type: "checkbox", checked: this.chosen.has(card.name), onchange: ({ target }) => (target.checked ? this.chosen.add(card.name) : this.chosen.delete(card.name)) }),
      this.nameOf(card.name)));
    this.slider = h("input", { type: "range", min: "0.1", max: "3", step: "0.05", value: "1", oninput: ({ target }) => {
      this.temperature = Number(target.value);
      this.degrees.textContent = number(this.temperature, 2);
      this.draw();
    } });
    this.degrees = h("output", {}, "1.00");
    this.ask = h("button", { type: "submit" }, "Ask the proxy");
    this.element = h("div", {}, h("h1", {}, "What a hard label hides"),
      h("p", { class: "note" }, "Text says which word the teacher chose, and nothing of the others it might have. The proxy says both, token by token; its adapters, from the base to the last round, say what alignment changed.",
        example && " To begin with, a record that the student learned from."),
      h("form", { onsubmit: (event) => this.submit(event) },
        h("section", {},
          h("label", { class: "wide" }, "prompt", this.prompt),
          h("label", { class: "wide" }, "completion (none: the next token)", this.completion),
          h("fieldset", { class: "controls" }, h("legend", {}, "proxies"), boxes),
          h("div", { class: "controls" }, this.ask))),
      this.out);
  }

  /** The short name that people use. */
  nameOf(adapter) {
    const card = this.adapters.find((one) => one.name === adapter);
    return `${card.aliases[0] ?? card.name}${adapter === this.aligned ? " (aligned)" : ""}`;
  }

  async submit(event) {
    event.preventDefault();
    this.ask.disabled = true;
    try {
      if (!this.chosen.size) throw new Error("Choose a proxy to ask.");
      const inOrder = this.adapters.map((card) => card.name).filter((name) => this.chosen.has(name));
      const body = { messages: [{ role: "user", content: this.prompt.value }], adapters: inOrder, top_k: TOP_K };
      if (this.completion.value) body.completion = this.completion.value;
      this.results = (await post("proxy/distribution", body)).results;
      this.at = 0;
      this.draw();
    } catch (error) {
      this.out.replaceChildren(h("section", {}, problem(error)));
    } finally {
      this.ask.disabled = false;
    }
  }

  draw() {
    if (!this.results) return;
    const [first] = this.results;
    const row = first.tokens && h("div", { class: "tokens", role: "group", "aria-label": "tokens of the completion" }, first.tokens.map((token, i) =>
      h("button", { type: "button", "aria-pressed": String(i === this.at), title: `log p ${number(token.logprob, 2)}, rank ${token.rank}`,
        style: { background: `rgba(var(--minus), ${(0.6 * Math.min(1, -token.logprob / 6)).toFixed(3)})` }, onclick: () => {
          this.at = i;
          this.draw();
          this.out.querySelectorAll(".tokens button")[i].focus();
        } }, token.token)));
    const slider = h("label", {}, ["temperature ", this.degrees], this.slider);
    const note = this.temperature !== 1 && h("p", { class: "note" }, `Approximate: of the tail its mass alone is known; its parts are taken to fall off by a power of their rank, from the last of the ${TOP_K} likeliest on.`);
    this.out.replaceChildren(h("section", {},
      h("h2", {}, first.tokens ? "Press a token to see what else the proxy might have said there" : "The next token"),
      row ?? "", h("p", { role: "status" }, this.seen()), h("div", { class: "controls" }, slider), note || "",
      h("div", { class: "columns" }, this.results.map((result) => this.column(result)))));
  }

  /** What one sees at the pressed token, in a sentence. */
  seen() {
    const places = this.results.map((result) => [this.nameOf(result.adapter), positionOf(result, this.at)]);
    const [, { token }] = places[0];
    if (token === undefined) return `A hard label would be one of these words, and hide the rest. ${places.map(([name, { top }]) => `${name} would most likely say “${show(top[0].token)}” (${percent(Math.exp(top[0].logprob))})`).join("; ")}.`;
    return `The text says “${show(token)}” here, and a hard label would call that certain. ${places.map(([name, { logprob, rank }]) => `${name} gives it ${percent(Math.exp(logprob))} (rank ${whole(rank)})`).join("; ")}. The rest is what the label hides.`;
  }

  column(result) {
    const sequence = result.sequence;
    return h("div", {},
      h("h3", { title: result.adapter }, this.nameOf(result.adapter)),
      sequence && h("p", { class: "soft" }, `log p ${number(sequence.logprob, 2)} nats over ${sequence.tokens} tokens`,
        sequence.trust_weight === null ? "" : `; trust weight ${number(sequence.trust_weight, 3)}`),
      bars(positionOf(result, this.at), this.temperature));
  }
}

function positionOf(result, at) {
  return result.tokens ? result.tokens[at] : result.next_token;
}

function bars(position, temperature) {
  const { shares, tail } = tempered(position, temperature);
  return h("div", { class: "next" },
    shares.map(({ token, token_id: tokenId, share }) => meter(show(token), share, tokenId === position.token_id && "actual")),
    meter("all others", tail, "tail"));
}

function meter(name, share, kind) {
  return [h("code", { title: name }, name), h("div", { class: `meter ${kind || ""}` }, h("span", { style: { width: `${100 * share}%` } })), h("span", {}, percent(share))];
}

/**
 * Every bar at another temperature: the known tokens by p^(1/T), the text's own among them even where it is none of the
 * likeliest, and the tail, all others, by `tailWeight`. At 1 they are as the proxy gave them.
 */
function tempered(position, temperature) {
  const { top, tail_mass: rest, token_id: own, token, logprob } = position;
  const outside = token !== undefined && !top.some((one) => one.token_id === own);
  const known = outside ? [...top, { token, token_id: own, logprob }] : top;
  const others = Math.max(0, rest - (outside ? Math.exp(logprob) : 0));
  const weights = known.map((one) => Math.exp(one.logprob / temperature));
  const tail = tailWeight(others, Math.exp(top.at(-1).logprob), top.length, vocabularyOf(position), temperature);
  const total = weights.reduce((sum, weight) => sum + weight, tail);
  return { shares: known.map((one, i) => ({ ...one, share: weights[i] / total })), tail: tail / total };
}

/** How many tokens there are: the bounds of the entropy differ by tail mass * log(tokens outside the top). */
function vocabularyOf({ top, tail_mass: rest, entropy_at_least: least, entropy_at_most: most }) {
  return top.length + (rest > 0 ? Math.max(1, Math.exp((most - least) / rest)) : 1);
}

/**
 * The sum of p^(1/T) over the tail: p(r) = last (r / k)^-s for ranks r from k to `vocabulary`, with s such that they sum to
 * `mass`, each sum as the integral that is near it.
 */
function tailWeight(mass, last, k, vocabulary, temperature) {
  if (!mass || temperature === 1) return mass;
  const sum = (s) => (Math.abs(s - 1) < 1e-9 ? k * Math.log(vocabulary / k) : (k * ((vocabulary / k) ** (1 - s) - 1)) / (1 - s));
  let [flat, steep] = [0, 200];
  for (let i = 0; i < 60; i++) {
    const s = (flat + steep) / 2;
    if (last * sum(s) > mass) flat = s;
    else steep = s;
  }
  return (mass * (last ** (1 / temperature) * sum(flat / temperature))) / (last * sum(flat));
}

function show(token) {
  return token.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "·") || "∅";
}
