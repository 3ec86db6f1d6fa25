/** Numbers and times as people read them, with one minus sign. An absent number is an empty text. */
export function number(value, digits = 4) {
  return value === null || value === undefined ? "" : value.toFixed(digits).replace("-", "−");
}

/** A mean with its standard error, where more than one prompt tells it. */
export function withError(value, stderr, digits = 4) {
  return number(value, digits) + (stderr === null || stderr === undefined ? "" : ` ± ${number(stderr, digits)}`);
}

export function signed(value, digits = 4) {
  return (value > 0 ? "+" : "") + number(value, digits);
}

export function signedWithError(value, stderr, digits = 4) {
  return signed(value, digits) + (stderr === null || stderr === undefined ? "" : ` ± ${number(stderr, digits)}`);
}

/** A share, as everywhere on the page. */
export function percent(value, digits = 1) {
  return value === null || value === undefined ? "" : `${number(100 * value, digits)} %`;
}

/** How many, in three figures or so: 123.9 M. */
export function magnitude(count) {
  const [size, unit] = [[1e9, " G"], [1e6, " M"], [1e3, " k"]].find(([one]) => count >= one) ?? [1, ""];
  return number(count / size, unit ? 1 : 0) + unit;
}

/** What the run itself has written, with the signs that people read. */
export function readable(text) {
  return text.replaceAll("->", "→").replace(/(^|[\s(])-(?=\d)/g, "$1−");
}

export function whole(value) {
  return value === null || value === undefined ? "" : Math.round(value).toLocaleString("en");
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function moment(seconds) {
  if (!seconds) return "";
  return new Date(1000 * seconds).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" });
}

export function clock(seconds) {
  return new Date(1000 * seconds).toLocaleTimeString("en-GB");
}

export function stageName(stage) {
  return stage.round ? `${stage.stage} ${stage.round}` : stage.stage;
}

export function plural(count, one, many = `${one}s`) {
  return `${whole(count)} ${count === 1 ? one : many}`;
}

const HEADLINE = { held_out_nll: "NLL", top1_agreement: "top-1", dpo_accuracy_after: "DPO accuracy after it", truncated: "ended by length" };
const SHARES = ["top1_agreement", "dpo_accuracy_after"];

function headlineText(key, value) {
  const told = SHARES.includes(key) ? percent(value) : typeof value === "number" && !Number.isInteger(value) ? number(value) : value;
  return `${HEADLINE[key] ?? key} ${told}`;
}

/** What a line of the log says. */
export function eventText(event) {
  const { segment, time, event: kind, traceback, ...facts } = event;
  if (kind === "run_started") return `coordinator up (epoch ${event.epoch})`;
  if (kind === "stage_started") return `${stageName(event)} begins`;
  if (kind === "stage_adopted") return `${stageName(event)} as in ${event.donor}`;
  if (kind === "sampled_ahead") return `sampled ahead for round ${event.round}: ${event.made} of ${event.shards} shards in ${duration(event.seconds)}`;
  if (kind === "routes_open") return `the proxy answers at ${event.url} while its engine is up`;
  if (kind === "metrics_open") return `metrics for Prometheus at ${event.url}`;
  if (kind === "alignment_finished") return `alignment ends: ${event.reason}`;
  if (kind === "warning") return `warning: ${readable(event.message)}`;
  if (kind === "failed") return `failed: ${readable(event.message)}`;
  if (kind === "stopped") return `stopped: ${event.reason}`;
  if (kind === "stage_finished") {
    const { stage, round, seconds, busy_seconds: busy, run, ...rest } = facts;
    const told = Object.entries(rest).filter(([, value]) => value !== null).map(([key, value]) => headlineText(key, value));
    return `${run ? `${run}: ` : ""}${stageName(event)} done in ${duration(run ? busy : seconds)}${told.length ? `: ${told.join(", ")}` : ""}`;
  }
  return kind;
}
