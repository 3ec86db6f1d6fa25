import { h, table } from "./dom.js";
import { get } from "./api.js";
import { duration, moment, percent, plural, stageName } from "./format.js";

const AGAIN_MS = 5000;

/** Every run and study, newest first. */
export async function runsView() {
  const place = h("div");
  const draw = async () => place.replaceChildren(list((await get("runs")).runs));
  await draw();
  const timer = setInterval(() => draw().catch(() => {}), AGAIN_MS); // the next look may find the server again
  return { crumbs: [["runs"]], element: h("div", {}, h("h1", {}, "Runs"), place), close: () => clearInterval(timer) };
}

function list(runs) {
  if (!runs.length) {
    return h("section", {}, h("p", {}, "No run lies here yet."),
      h("p", { class: "soft" }, "Start one with ", h("code", {}, "proxykd run configs/quickstart.yaml"), "; it appears by itself."));
  }
  return h("section", {}, table(runs, [
    ["run", (run) => h("a", { href: `#/${run.kind === "study" ? "studies" : "runs"}/${run.id}` }, run.id), true],
    ["state", (run) => h("span", { class: `state ${run.state}` }, run.state), true],
    ["result", (run) => run.result ?? "", true],
    ["where it is", where, true],
    ["rounds", (run) => run.rounds || "", false, true],
    ["spent", (run) => (run.seconds ? duration(run.seconds) : ""), false, true],
    ["started", (run) => moment(run.started_at), false, true],
    ["teacher", (run) => run.teacher ?? "", false, true],
  ], "Runs and studies"));
}

function where(run) {
  if (run.state === "failed" || run.state === "unreadable") return run.error ?? "";
  if (run.kind === "study" && run.runs) {
    const done = Object.values(run.runs).filter(Boolean).length;
    return `${done} of ${plural(Object.keys(run.runs).length, "run")} finished`;
  }
  if (run.now) return `${stageName(run.now)}${run.now.total ? `, ${percent(run.now.done / run.now.total, 0)}` : ""}`;
  return run.stage && !["finished", "serving"].includes(run.state) ? `after ${stageName(run.stage)}` : "";
}
