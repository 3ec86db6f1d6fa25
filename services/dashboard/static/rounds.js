import { h, table } from "./dom.js";
import { lineChart } from "./charts.js";
import { percent, readable, signed, whole } from "./format.js";

const NO_PREFERENCE = { value: Math.LN2, label: "0.693: no preference" };
const BY_CHANCE = { value: 0.5, label: "50 %: by chance" };
const UNMOVED = { value: 0, label: "0: unmoved" };
/** By a step's measure: its title, and how its chart differs from others. */
const MEASURES = {
  nll: ["NLL (nats)"], dpo: ["DPO loss (nats)", { marks: [NO_PREFERENCE] }], correct: ["DPO accuracy", { share: true, marks: [BY_CHANCE] }],
  margin: ["margin (nats)", { marks: [UNMOVED] }], kl: ["weighted KL (nats)"],
  sequence_kl: ["KL a record, unweighted (nats)"], divergence: ["divergence (nats a token)"],
  sample_length: ["tokens a sample"], ended_by_length: ["samples ended by length", { share: true }], repeated_4grams: ["repeated 4-grams", { share: true }],
};

/** What the rounds of alignment did, and every stage's steps. */
export function rounds({ rounds: all, steps }, id) {
  const rows = !all.length ? h("p", {}, "No round has ended yet.") : table(all, [
    ["round", (one) => (one.inspected ? h("a", { href: `#/runs/${id}/rounds/${one.round}` }, `round ${one.round}`) : `round ${one.round}`), true],
    ["decision", (one) => `${one.decision === "promote" ? "promoted" : "rejected"}: ${readable(one.reason)}`, true],
    ["pairs", (one) => whole(one.pairs)],
    ["dropped", (one) => droppedText(one.dropped)],
    ["ended by length", (one) => (one.samples ? `${whole(one.truncated)} of ${whole(one.samples)}` : "")],
    ["DPO accuracy after it", (one) => percent(one.dpo_accuracy_after)],
    ["mean margin after it", (one) => signed(one.margin_mean_after, 3)],
  ], "Rounds");
  return [rows, all.length > 1 && roundCharts(all), stepCurves(steps)].filter(Boolean);
}

function roundCharts(all) {
  const x = { label: "round", values: all.map((one) => one.round) };
  const of = (key) => all.map((one) => one[key] ?? null);
  const beside = (key) => [{ label: "after the round", values: of(`${key}_after`) }, { label: "over its steps", values: of(key), dashed: true }];
  const accuracy = beside("dpo_accuracy");
  accuracy[0].ranges = of("accuracy_after_range");
  return h("div", { class: "columns" },
    lineChart({ title: "What the round changed: validation NLL after less before, record by record", unit: "nats a token", x, marks: [UNMOVED], series: [
      { label: "change", apart: true, values: all.map((one) => one.validation_change?.nll ?? null), errors: all.map((one) => one.validation_change?.stderr ?? null) },
    ] }),
    lineChart({ title: "DPO accuracy", unit: "share of pairs", x, series: accuracy, share: true, marks: [BY_CHANCE] }),
    lineChart({ title: "Mean margin", unit: "nats", x, series: beside("margin_mean"), digits: 3, marks: [UNMOVED] }),
    lineChart({ title: "DPO loss, mean over the round's steps", unit: "nats a pair", x, series: [{ label: "DPO loss", values: of("dpo_loss") }], marks: [NO_PREFERENCE] }),
    lineChart({ title: "NLL, mean over the round's steps", unit: "nats a token", x, series: [{ label: "NLL", values: of("nll_loss") }] }),
    all.some((one) => one.task) && lineChart({ title: "Task score, greedily answered", unit: "share of questions", x, share: true, series: [
      { label: "after the round", values: all.map((one) => one.task?.score ?? null), errors: all.map((one) => one.task?.stderr ?? null) },
    ] }));
}

function stepCurves(steps) {
  const names = Object.keys(steps);
  if (!names.length) return null;
  const place = h("div", { class: "columns" });
  const draw = (name) => {
    const { grad_norm: gradient, ...measures } = steps[name];
    const shown = Object.entries({ ...measures, "gradient norm": gradient }).filter(([key, values]) => !key.startsWith("grad_") && values?.length);
    place.replaceChildren(...shown.map(([key, values]) => measureChart(key, { label: "step", values: values.map((_, i) => i + 1) }, values, 170)));
  };
  const select = h("select", { onchange: (event) => draw(event.target.value) }, names.map((name) => h("option", { selected: name === names.at(-1) }, name)));
  draw(names.at(-1));
  return h("div", {}, h("h3", {}, "Step by step"), h("label", { class: "inline" }, "stage", select), place);
}

/** A step's measure as it goes. */
export function measureChart(name, x, values, height) {
  const [title, look] = MEASURES[name] ?? [name];
  return lineChart({ title, x, series: [{ label: title, values }], unit: "", height, ...look });
}

export function droppedText(dropped) {
  return Object.entries(dropped ?? {}).filter(([, count]) => count).map(([reason, count]) => `${whole(count)} ${reason}`).join(", ");
}
