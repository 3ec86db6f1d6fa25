import { h, table } from "./dom.js";
import { get, text } from "./api.js";
import { number, plural, signed } from "./format.js";

const COMPARED = [["true_kl", "true KL"], ["held_out_nll", "NLL a token"], ["top1_agreement", "top-1"], ["sequence_agreement", "whole completions"]];

/** A study's tables and figures. */
export async function studyView(id) {
  const study = await get(`studies/${id}`);
  const runs = h("section", {}, h("h2", {}, "Its runs"), h("p", { class: "controls" }, study.runs.map((run) => h("a", { href: `#/runs/${run}` }, run.slice(id.length + 1)))));
  const body = study.report ? [...tables(study.report), figures(id, study.figures)] : [h("section", {}, h("p", {}, `No report yet: ${plural(study.runs.length, "run")} are its arms by its seeds. It comes when the last has finished.`))];
  return { crumbs: [["runs", "#/"], [id]], element: h("div", {}, h("h1", {}, id), body, runs) };
}

function tables(report) {
  const known = COMPARED.filter(([key]) => report.table.some((row) => row[key] !== null && row[key] !== undefined));
  const first = report.table[0].title;
  return [
    h("section", {}, h("h2", {}, "Every arm's student against the teacher"),
      h("p", { class: "note" }, `Test slice, mean over ${plural(report.study.seeds.length, "seed")} ± half a 95 % interval; in brackets the paired difference to ${first}. Lower is better, but for agreement.`),
      table(report.table, [["arm", (row) => row.title, true], ...known.map(([key, title]) => [title, (row) => cell(row, key)])], "Arms")),
    report.benchmarks.length ? h("section", {}, h("h2", {}, "Benchmarks"),
      table(report.benchmarks, [["arm", (row) => row.title, true], ["model", (row) => row.model, true], ...tasksOf(report).map((task) => [task, (row) => cell(row, task)])], "Benchmarks")) : "",
    h("section", {}, h("h2", {}, "What a stage costs"),
      table(report.costs, [["stage", (row) => row.stage, true], ["device-hours", (row) => number(row.device_hours, 5)], ["to SFT", (row) => number(row.to_sft, 2)]], "Costs")),
  ];
}

function tasksOf(report) {
  const own = ["arm", "title", "group", "model"];
  return [...new Set(report.benchmarks.flatMap((row) => Object.keys(row)))].filter((key) => !own.includes(key) && !/_(ci|difference|difference_ci)$/.test(key));
}

function cell(row, key) {
  if (row[key] === null || row[key] === undefined) return "";
  const interval = row[`${key}_ci`] === null || row[`${key}_ci`] === undefined ? "" : ` ± ${number(row[`${key}_ci`])}`;
  const difference = row[`${key}_difference`];
  return `${number(row[key])}${interval}${difference === null || difference === undefined ? "" : ` (${signed(difference)})`}`;
}

function figures(id, names) {
  return h("section", { class: "figures" }, h("h2", {}, "Figures"), names.map((name) => {
    const image = h("img", { alt: name.replaceAll("-", " ") });
    text(`studies/${id}/figures/${name}.svg`).then((svg) => (image.src = `data:image/svg+xml,${encodeURIComponent(svg)}`), () => image.remove());
    return h("figure", {}, h("figcaption", {}, name.replaceAll("-", " ")), image);
  }));
}
