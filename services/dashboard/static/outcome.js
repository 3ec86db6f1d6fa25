import { h } from "./dom.js";
import { dotPlot } from "./charts.js";
import { magnitude, plural } from "./format.js";

/** What the run came to: one sentence, one figure. */
export function outcome({ measure, before, after, sft, less_sft: less, sentence }) {
  const rows = [{ label: "student before", colour: "var(--soft)", ...before }, ...(sft ? [{ label: "SFT on the same text", colour: "var(--blue)", ...sft }] : []), { label: "student after", colour: "var(--full)", ...after }];
  const kl = measure === "true_kl";
  const most = 1.05 * Math.max(...rows.map((row) => row.value + (row.stderr ?? 0)));
  const figures = [dotPlot(kl ? "True KL from the teacher, nats a token, test slice" : "NLL of the teacher's text, nats a token, test slice", rows,
    { low: 0, high: most, ends: [kl ? "0: the teacher itself" : "0: every word foreseen", "farther"] })];
  if (less) {
    const reach = 1.2 * Math.max(Math.abs(less.value) + 2 * (less.stderr ?? 0), 1e-6);
    figures.push(dotPlot("The student less SFT, record by record", [{ label: "difference", colour: "var(--full)", ...less }], { low: -reach, high: reach, ends: ["closer than SFT", "0", "farther"], change: true }));
  }
  return [h("p", { class: "lead" }, sentence), ...figures];
}

/** Who is who in a run, and what its measures mean: once, for the whole page. */
export function roles({ teacher, proxy, student, source, parameters, layers_cut: cut }) {
  const model = (name, part) => [name, cut[part] ? `${plural(cut[part], "layer")} cut` : null, parameters[part] ? `${magnitude(parameters[part])} parameters` : null].filter(Boolean).join(", ");
  const all = [
    ["Teacher", model(teacher.model, "teacher"), teacher.local ? "sells text; its probabilities are sealed until the last measurement" : "sells text and keeps its probabilities"],
    ["proxy", "base", "shift"].includes(source) && ["Proxy", model(proxy, "proxy"), "an open model that shows its whole distribution; aligned, it stands for the teacher's"],
    ["Student", model(student, "student"), "the small model that is yours in the end"],
  ].filter(Boolean);
  return [
    h("dl", { class: "roles" }, all.map(([who, which, what]) => [h("dt", {}, who), h("dd", {}, h("b", {}, which), ": ", what)])),
    h("p", { class: "note" }, "NLL: how little a model foresees the teacher's own words, −log p a token on average. True KL: how far its whole distribution is from the teacher's. Of both less is better; ±, and a whisker in a chart, is one standard error."),
  ];
}
