import { h, problem } from "./dom.js";
import { get, post, reportOf } from "./api.js";
import { number, percent } from "./format.js";

const TOP_K = 20;

/** What a hard label hides: the proxy's distribution at each token of any completion, adapters side by side. */
export async function exploreView(id) {
  if (reportOf) throw new Error("A report cannot ask the proxy; open the dashboard while the run or proxykd serve answers.");
  const { adapters, default: aligned } = await get("proxy/adapters").catch(() => {
    throw new Error(`No proxy answers here. Its routes are open while the run's engine is up, or by: proxykd serve RUN (the explorer is then at its /dashboard/).`);
  });
  const explorer = new Explorer(adapters, aligned);
  return { crumbs: [["runs", "#/"], [id, `#/runs/${id}`], ["explore"]], element: explorer.element };
}

class Explorer {
  constructor(adapters, aligned) {
    this.temperature = 1;
    this.at = 0;
    this.chosen = new Set([aligned ?? adapters.at(-1).name]);
    this.prompt = h("textarea", { rows: "3", required: true });
    this.completion = h("textarea", { rows: "3" });
    this.out = h("div");
    const boxes = adapters.map((card) => h("label", { class: "inline" },
      h("input", { type: "checkbox", checked: this.chosen.has(card.name), onchange: ({ target }) => (target.checked ? this.chosen.add(card.name) : this.chosen.delete(card.name)) }),
      [card.aliases[0] ?? card.name, card.name === aligned ? " (aligned)" : ""].join("")));
    this.slider = h("input", { type: "range", min: "0.1", max: "3", step: "0.05", value: "1", oninput: ({ target }) => {
      this.temperature = Number(target.value);
      this.degrees.textContent = this.temperature.toFixed(2);
      this.draw();
    } });
    this.degrees = h("output", {}, "1.00");
    this.ask = h("button", { type: "submit" }, "Ask the proxy");
    this.element = h("div", {}, h("h1", {}, "What a hard label hides"),
      h("form", { onsubmit: (event) => this.submit(event) },
        h("section", {},
          h("label", { class: "wide" }, "prompt", this.prompt),
          h("label", { class: "wide" }, "completion (none: the next token)", this.completion),
          h("fieldset", { class: "controls" }, h("legend", {}, "proxies"), boxes),
          h("div", { class: "controls" }, this.ask))),
      this.out);
  }

  async submit(event) {
    event.preventDefault();
    this.ask.disabled = true;
    try {
      if (!this.chosen.size) throw new Error("Choose a proxy to ask.");
      const body = { messages: [{ role: "user", content: this.prompt.value }], adapters: [...this.chosen], top_k: TOP_K };
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
    const tokens = first.tokens ?? [first.next_token];
    const row = first.tokens && h("div", { class: "tokens", role: "group", "aria-label": "tokens of the completion" }, tokens.map((token, i) =>
      h("button", { type: "button", "aria-pressed": String(i === this.at), title: `log p ${number(token.logprob, 2)}, rank ${token.rank}`,
        style: { background: `rgba(var(--minus), ${(0.6 * Math.min(1, -token.logprob / 6)).toFixed(3)})` }, onclick: () => {
          this.at = i;
          this.draw();
          this.out.querySelectorAll(".tokens button")[i].focus();
        } }, token.token)));
    const slider = h("label", {}, ["temperature ", this.degrees], this.slider);
    const note = this.temperature !== 1 && h("p", { class: "note" }, `Approximate: the ${TOP_K} likeliest are sharpened or flattened among themselves; the tail keeps its mass, since its parts are not known.`);
    this.out.replaceChildren(h("section", {},
      h("h2", {}, first.tokens ? "Press a token to see what else the proxy might have said there" : "The next token"),
      row ?? "", h("div", { class: "controls" }, slider), note || "",
      h("div", { class: "columns" }, this.results.map((result) => this.column(result)))));
  }

  column(result) {
    const position = result.tokens ? result.tokens[this.at] : result.next_token;
    const sequence = result.sequence;
    return h("div", {},
      h("h3", {}, result.adapter),
      sequence && h("p", { class: "soft" }, `log p ${number(sequence.logprob, 2)} nats over ${sequence.tokens} tokens`,
        sequence.trust_weight === null ? "" : `; trust weight ${number(sequence.trust_weight, 3)}`),
      bars(position, this.temperature));
  }
}

function bars(position, temperature) {
  const top = tempered(position, temperature);
  const rows = top.map(({ token, token_id: tokenId, share }) => meter(show(token), share, tokenId === position.token_id && "actual"));
  const inTop = top.some((one) => one.token_id === position.token_id);
  const actual = position.token !== undefined && !inTop ? meter(`${show(position.token)}`, Math.exp(position.logprob), "actual") : [];
  return h("div", { class: "next" }, rows, actual, meter("tail (≈ rest)", position.tail_mass, "tail"));
}

function meter(name, share, kind) {
  return [h("code", { title: name }, name), h("div", { class: `meter ${kind || ""}` }, h("span", { style: { width: `${100 * share}%` } })), h("span", {}, percent(share))];
}

/** The top-K at another temperature, within the mass that they hold at temperature 1. */
function tempered(position, temperature) {
  const weights = position.top.map((one) => Math.exp((one.logprob - position.top[0].logprob) / temperature));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return position.top.map((one, i) => ({ ...one, share: ((1 - position.tail_mass) * weights[i]) / total }));
}

function show(token) {
  return token.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "·") || "∅";
}
