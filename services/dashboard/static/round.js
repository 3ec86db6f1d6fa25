import { h, problem, table } from "./dom.js";
import { get, reportOf } from "./api.js";
import { number, percent, plural, readable, signed, signedWithError, whole } from "./format.js";

const A_PAGE = 10;
const DEEPEST = 6; // nats: a token this unlikely has the fullest colour
const LARGEST = 1.5; // nats: the same for a change
const CONTROL = /^(<[^<>\s]{1,40}>|\[\/?[A-Z_]{3,20}\])$/; // a token of a chat template
const MODES = [["change", "change by this round"], ["after", "log p after this round"], ["before", "log p before it"]];
const ORDERS = [["trust", "lowest trust first"], ["margin", "largest margin first"], ["round", "as in the round"]];

/** A round's pairs side by side, token by token. */
export async function roundView(id, roundNumber) {
  const facts = await get(`runs/${id}`);
  const round = facts.rounds.find((one) => one.round === Number(roundNumber));
  if (!round) throw new Error(`${id} has not finished a round ${roundNumber}.`);
  const pairs = new Pairs(id, round.round);
  if (round.inspected) await pairs.load();
  const element = h("div", {},
    h("div", { class: "title" }, h("h1", {}, `Round ${round.round}`), h("span", { class: `state ${round.decision === "promote" ? "finished" : "failed"}` }, round.decision === "promote" ? "promoted" : "rejected")),
    h("p", { class: "soft" }, readable(round.reason)),
    neighbours(id, facts.rounds, round.round),
    h("section", {}, h("h2", {}, "In numbers"), numbers(round)),
    round.inspected ? pairs.element : h("section", {}, h("p", {}, "This round kept no pairs to look at: it had no preference pairs.")));
  return { crumbs: [["runs", "#/"], [id, `#/runs/${id}`], [`round ${round.round}`]], element };
}

function neighbours(id, rounds, mine) {
  const link = (target, label) => rounds.some((one) => one.round === target) && h("a", { href: `#/runs/${id}/rounds/${target}` }, label);
  return h("p", { class: "controls" }, h("a", { href: `#/runs/${id}` }, "The run"), link(mine - 1, "← round before"), link(mine + 1, "round after →"));
}

function numbers(round) {
  const facts = [
    ["pairs", round.pairs], ["samples that ended by length", round.samples && `${round.truncated} of ${round.samples}`],
    ["NLL a token", number(round.nll_loss)], ["DPO loss", number(round.dpo_loss)],
    ["DPO accuracy after the round", accuracy(round)], ["DPO accuracy over its steps", percent(round.dpo_accuracy)],
    ["mean margin after the round", nats(round.margin_mean_after)], ["mean margin over its steps", nats(round.margin_mean)],
    ["pairs judged after the round", round.pairs_after],
    ["validation NLL", number(round.validation?.held_out_nll)], ["its change", change(round.validation_change)], ["top-1", percent(round.validation?.top1_agreement)],
    ["task score", percent(round.task?.score)], ["its change", answered(round.task_change)],
    ["largest margin before the first step (must be 0: the policy is its reference)", exact(round.step0_margin_max_abs)],
    ["engine and trainer differ on the same tokens, on average, by", exact(round.parity_mean_abs)],
    ["adapter", round.adapter], ["refers to", round.reference_adapter],
  ].filter(([, value]) => value !== undefined && value !== null && value !== "");
  return table(facts, [["measure", ([name]) => name, true], ["value", ([, value]) => String(value)]], "The round in numbers");
}

function nats(value) {
  return value === null || value === undefined ? "" : `${signed(value, 3)} nats`;
}

/** A difference of log-probs that should be 0, in nats. */
function exact(value) {
  if (value === null || value === undefined) return "";
  if (value && value < 1e-6) return "less than 0.000001 nats";
  return value ? `${value.toPrecision(2)} nats` : "0";
}

function accuracy({ dpo_accuracy_after: share, accuracy_after_range: range }) {
  return percent(share) + (range ? ` (${percent(range[0])} to ${percent(range[1])})` : "");
}

function change(measured) {
  if (!measured) return "";
  return `${signedWithError(measured.nll, measured.stderr)} nats a token, over ${plural(measured.prompts, "prompt")}`;
}

function answered(changed) {
  return changed && `${whole(changed.won)} won, ${whole(changed.lost)} lost of ${plural(changed.questions, "question")}`;
}

class Pairs {
  constructor(id, round) {
    this.path = `runs/${id}/rounds/${round}/pairs`;
    this.query = { order: "trust", wrong: false, search: "", offset: 0, limit: A_PAGE };
    this.mode = "change";
    this.told = h("p", { class: "soft", role: "status" });
    this.list = h("div");
    this.frame = h("div");
    this.legend = h("p", { class: "colours" });
    this.more = h("button", { type: "button", onclick: () => this.next() }, "More pairs");
    this.element = h("section", {}, h("h2", {}, "Chosen and rejected"),
      h("p", { class: "note" }, "The teacher's completion is chosen, the proxy's own rejected. Each token is coloured by the proxy's log p of it; the template's own are grey."),
      this.controls(), this.legend, this.frame, this.told, this.list, this.more);
  }

  controls() {
    const choose = (label, options, start, change) =>
      h("label", {}, label, h("select", { onchange: (event) => change(event.target.value) }, options.map(([value, name]) => h("option", { value, selected: value === start }, name))));
    const again = (change) => {
      Object.assign(this.query, change, { offset: 0 });
      this.load().catch((error) => this.list.replaceChildren(problem(error)));
    };
    const colours = choose("colour by", MODES, this.mode, (mode) => {
      this.mode = mode;
      this.draw();
    });
    if (reportOf) return h("div", { class: "controls" }, colours);
    let soon;
    return h("div", { class: "controls" }, colours,
      choose("order", ORDERS, this.query.order, (order) => again({ order })),
      h("label", { class: "wide" }, "search", h("input", { type: "search", oninput: ({ target }) => {
        clearTimeout(soon);
        soon = setTimeout(() => again({ search: target.value }), 250);
      } })),
      h("label", { class: "inline" }, h("input", { type: "checkbox", onchange: ({ target }) => again({ wrong: target.checked }) }), "only those still preferred the wrong way"));
  }

  async load() {
    const { inspected, found, frame, pairs } = await get(this.path, this.query);
    this.around = frame;
    this.frame.replaceChildren(...frameOf(frame));
    this.pairs = this.query.offset ? [...this.pairs, ...pairs] : pairs;
    this.told.textContent = `${found} of the ${plural(inspected, "pair")} that were looked at token by token, the round's first.`;
    this.more.hidden = Boolean(reportOf) || this.pairs.length >= found;
    this.draw();
  }

  async next() {
    this.query.offset = this.pairs.length;
    await this.load();
  }

  draw() {
    this.legend.replaceChildren(...legendOf(this.mode));
    this.list.replaceChildren(...this.pairs.map((pair) => pairOf(pair, this.around, this.mode)));
  }
}

/** What all prompts have around them alike, system prompt and template, folded away. */
function frameOf({ before, after }) {
  if (!before && !after) return [];
  return [h("details", {}, h("summary", {}, "What stands around every prompt: its system prompt and the template's tokens"),
    h("div", { class: "text-block" }, h("span", { class: "control" }, before), "the prompt", h("span", { class: "control" }, after)))];
}

/** What the colours say, from one end of their scale to the other. */
function legendOf(mode) {
  const swatch = (before, after, told) => h("span", {}, h("i", { style: { background: colourOf(mode, before, after) } }), told);
  if (mode === "change") {
    return [-LARGEST, -LARGEST / 2, 0, LARGEST / 2, LARGEST].map((change) =>
      swatch(0, change, `${signed(change, 2)}${Math.abs(change) === LARGEST ? (change > 0 ? " nats or more: likelier" : " nats or less: unlikelier") : ""}`));
  }
  return [0, -DEEPEST / 8, -DEEPEST / 4, -DEEPEST / 2, -DEEPEST].map((logp) => swatch(logp, logp, `${percent(Math.exp(logp), logp < -2 ? 1 : 0)}${logp === -DEEPEST ? " or less likely" : ""}`));
}

function pairOf(pair, { before, after }, mode) {
  return h("article", { class: "pair" },
    h("p", { class: "soft" }, `${pair.id}: margin ${signed(pair.margin, 3)} nats${pair.margin < 0 ? " (the wrong way)" : ""}, trust ${number(pair.trust, 3)}`),
    h("div", { class: "text-block" }, pair.prompt.slice(before.length, pair.prompt.length - after.length)),
    h("div", { class: "columns" }, side("chosen: the teacher's", pair, "chosen", mode), side("rejected: the proxy's own", pair, "rejected", mode)));
}

function side(title, pair, name, mode) {
  const [before, after] = [pair[`${name}_before`], pair[`${name}_after`]];
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  return h("div", {},
    h("h3", {}, title),
    h("p", { class: "soft" }, `log p ${number(sum(before), 1)} → ${number(sum(after), 1)} nats over ${plural(before.length, "token")}`),
    h("div", { class: "tokens" }, pair[name].map((token, i) => {
      const told = `log p ${number(before[i], 2)} → ${number(after[i], 2)}`;
      return CONTROL.test(token) ? h("span", { title: told, class: "control" }, token) : h("span", { title: told, style: { background: colourOf(mode, before[i], after[i]) } }, token);
    })));
}

function colourOf(mode, before, after) {
  if (mode === "change") {
    const change = after - before;
    return `rgba(var(${change >= 0 ? "--plus" : "--minus"}), ${(0.6 * Math.min(1, Math.abs(change) / LARGEST)).toFixed(3)})`;
  }
  const depth = Math.min(1, -(mode === "after" ? after : before) / DEEPEST);
  return depth < 0.25 ? `rgba(var(--plus), ${(0.35 * (1 - 4 * depth)).toFixed(3)})` : `rgba(var(--minus), ${(0.6 * (depth - 0.25)).toFixed(3)})`;
}
