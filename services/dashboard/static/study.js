import { h, table } from "./dom.js";
import { get, text } from "./api.js";
import { number, percent, plural, whole } from "./format.js";

const COMPARED = [["true_kl", "true KL"], ["held_out_nll", "NLL a token"], ["top1_agreement", "top-1"], ["device_hours", "device-hours"], ["sequence_agreement", "whole completions"]];
const MEASURE_TITLES = Object.fromEntries(COMPARED);
const NO_SHARES = ["true_kl", "held_out_nll", "device_hours"];
const BOUNDS = { at_least: "at least ", at_most: "at most " };

/** A study's tables and figures. */
export async function studyView(id) {
  const study = await get(`studies/${id}`);
  const runs = h("section", {}, h("h2", {}, "Its runs"), h("p", { class: "controls" }, study.runs.map((run) => h("a", { href: `#/runs/${run}` }, run.slice(id.length + 1)))));
  const body = study.report ? [...tables(study.report), figures(id, study.figures)] : [h("section", {}, h("p", {}, `No report yet: ${plural(study.runs.length, "run")} are its arms by its seeds. It comes when the last has finished.`))];
  return { crumbs: [["runs", "#/"], [id]], element: h("div", {}, h("h1", {}, id), body, runs) };
}

function tables(report) {
  const reference = report.table.find((row) => row.arm === report.study.reference)?.title;
  return [
    h("section", {}, h("h2", {}, "Every arm's student against the teacher"),
      h("p", { class: "note" }, `Test slice, mean over ${plural(report.study.seeds.length, "seed")} ± half a 95 % interval${reference ? `; in brackets the paired difference to ${reference}` : ""}. Lower is better, but for agreement.`),
      table(report.table, [["arm", (row) => row.title, true], ...measured(report.table)], "Arms")),
    report.sizes?.length ? h("section", {}, h("h2", {}, "What fewer training records give"),
      h("p", { class: "note" }, `Means and intervals as above${reference ? `; in brackets the paired difference to ${reference} with as many records` : ""}.`),
      table(report.sizes, [["arm", (row) => row.title, true], ["training records", (row) => whole(row.records)], ...measured(report.sizes)], "Sizes"),
      report.savings.length ? savings(report.savings, reference) : "") : "",
    report.benchmarks.length ? h("section", {}, h("h2", {}, "Benchmarks"),
      table(report.benchmarks, [["arm", (row) => row.title, true], ["model", (row) => row.model, true], ...tasksOf(report).map((task) => [task, (row) => cell(row, task)])], "Benchmarks")) : "",
    h("section", {}, h("h2", {}, "What a stage costs"),
      table(report.costs, [["stage", (row) => row.stage, true], ["device-hours", (row) => number(row.device_hours, 5)], ["to SFT", (row) => number(row.to_sft, 2)]], "Costs")),
  ];
}

/** Columns of the measures that any row has. */
function measured(rows) {
  const known = COMPARED.filter(([key]) => rows.some((row) => row[key] !== null && row[key] !== undefined));
  return known.map(([key, title]) => [title, (row) => cell(row, key)]);
}

/** How many fewer records an arm needs for what the reference has from all of its own. */
function savings(found, reference) {
  return [
    h("h3", {}, `Fewer records for what ${reference} has from all of its own`),
    h("p", { class: "note" }, "Mean over seeds with its 95 % bootstrap interval. At least: the smallest size is as good already; at most: all records are not enough; undecided: seeds of both kinds."),
    table(found, [
      ["arm", (one) => one.title, true],
      ["by", (one) => MEASURE_TITLES[one.measure], true],
      ["fewer records", saved],
      ["by seed", (one) => one.seeds.map((seed) => (BOUNDS[seed.bound] ?? "") + percent(seed.saving, 0)).join(", ")],
    ], "Savings"),
  ];
}

/** The mean saving with its interval, or the bound that it is. */
function saved(one) {
  if (one.mean === null) return "undecided";
  const interval = one.low === null ? "" : ` (${percent(one.low, 0)} to ${percent(one.high, 0)})`;
  return `${BOUNDS[one.bound] ?? ""}${percent(one.mean, 0)}${interval}`;
}

function tasksOf(report) {
  const own = ["arm", "title", "group", "model"];
  return [...new Set(report.benchmarks.flatMap((row) => Object.keys(row)))].filter((key) => !own.includes(key) && !/_(ci|difference|difference_ci)$/.test(key));
}

function cell(row, key) {
  if (row[key] === null || row[key] === undefined) return "";
  const told = NO_SHARES.includes(key) ? number : percent;
  const [interval, difference] = [row[`${key}_ci`], row[`${key}_difference`]];
  const plus = difference > 0 ? "+" : "";
  return told(row[key]) + (told(interval) && ` ± ${told(interval)}`) + (told(difference) && ` (${plus}${told(difference)})`);
}

function figures(id, names) {
  return h("section", { class: "figures" }, h("h2", {}, "Figures"), names.map((name) => {
    const image = h("img", { alt: name.replaceAll("-", " ") });
    text(`studies/${id}/figures/${name}.svg`).then((svg) => (image.src = `data:image/svg+xml,${encodeURIComponent(svg)}`), () => image.remove());
    return h("figure", {}, h("figcaption", {}, name.replaceAll("-", " ")), image);
  }));
}
