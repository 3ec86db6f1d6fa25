import { Part, h, problem, table } from "./dom.js";
import { follow, get, reportOf } from "./api.js";
import { appendPoint, barButtons, lineChart, shareBar } from "./charts.js";
import { clock, duration, eventText, moment, number, percent, plural, readable, signed, signedWithError, stageName, whole, withError } from "./format.js";
import { outcome, roles } from "./outcome.js";
import { droppedText, measureChart, rounds } from "./rounds.js";

const TURNS = ["run_started", "stage_started", "stage_finished", "stage_adopted", "alignment_finished", "finished", "failed", "stopped"];
const BAD = ["failed", "warning"];
const LOG_MOST = 500;

/** One run, live: the method's story with the run's own numbers. */
export async function runView(id, shell) {
  const page = new RunPage(id, shell);
  await page.load();
  return { crumbs: [["runs", "#/"], [id]], element: page.element, close: () => page.close() };
}

class RunPage {
  constructor(id, shell) {
    this.id = id;
    this.shell = shell;
    this.head = h("div");
    this.now = new NowPart();
    this.log = new Log(id);
    this.parts = PARTS.map(([title, input, draw, note]) => [new Part(title, (facts) => draw(facts, id), note), input]);
    const parts = this.parts.map(([part]) => part.element);
    this.element = h("div", {}, this.head, this.now.element, parts, this.log.element);
    this.close = () => {};
  }

  async load() {
    const last = await this.log.load();
    await this.refresh();
    if (reportOf) return;
    this.close = follow(`runs/${this.id}/live`, last, (kind, facts) => this.take(kind, facts), (up) => this.link(up));
    const stopFollowing = this.close;
    const timer = setInterval(() => this.refresh().catch(() => {}), 30000); // what died silently shows no event
    this.close = () => {
      clearInterval(timer);
      stopFollowing();
    };
  }

  async refresh() {
    this.facts = await get(`runs/${this.id}`);
    this.head.replaceChildren(...heading(this.facts));
    for (const [part, input] of this.parts) part.show(input(this.facts));
    this.now.show(this.facts.status.now, this.facts.history);
    this.link(this.up, this.facts.status.alive);
  }

  /** Says "live" while the run is at work and its events come. */
  link(up, alive = this.alive) {
    [this.up, this.alive] = [up, alive];
    if (up !== undefined) this.shell.say(!up ? "connection lost; trying again" : alive ? "live" : "", !up);
  }

  take(kind, facts) {
    if (kind === "now") {
      this.now.show(facts.stage && facts.alive ? facts : null);
      this.link(this.up, facts.alive);
      return;
    }
    this.log.add(facts);
    if (TURNS.includes(facts.event)) {
      clearTimeout(this.soon);
      this.soon = setTimeout(() => this.refresh().catch(() => {}), 200);
    }
  }
}

function heading({ run, status }) {
  return [
    h("div", { class: "title" }, h("h1", {}, run.id), h("span", { class: `state ${status.state}` }, status.state)),
    run.started_at && h("p", { class: "soft" }, `started ${moment(run.started_at)}`),
    status.error && status.state === "failed" && h("p", { class: "problem", role: "alert" }, `failed: ${readable(status.error)}`),
    status.state === "stopped" && h("p", {}, "Stopped; ", h("code", {}, "proxykd resume"), " goes on with it."),
    !reportOf && h("p", {}, h("a", { href: `#/runs/${run.id}/explore` }, "Explore the proxy's distribution")),
  ].filter(Boolean);
}

/** The stage in hand: how far, how long still, and its own curve as it grows. */
class NowPart {
  constructor() {
    this.title = h("h2", {}, "Now");
    this.told = h("p", { role: "status" });
    this.bar = h("span");
    this.progress = h("div", { class: "progress", role: "progressbar", "aria-label": "progress of the stage", "aria-valuemin": "0", "aria-valuemax": "100" }, this.bar);
    this.chart = h("div");
    this.element = h("section", { hidden: true }, this.title, this.told, this.progress, this.chart);
  }

  show(now, history) {
    this.element.hidden = !now;
    if (!now) return;
    const share = now.total ? now.done / now.total : 0;
    this.title.textContent = `Now: ${stageName(now)}`;
    const elapsed = now.time - (now.step_started ?? now.started);
    const left = share > 0.02 && share < 1 ? `, ${duration((elapsed * (1 - share)) / share)} left` : "";
    const far = now.total ? `${whole(now.done)} of ${whole(now.total)} ${now.unit}${left}` : now.step ?? "";
    const metrics = Object.entries(now.metrics ?? {});
    this.told.textContent = [now.total && now.step ? now.step : null, far, ...metrics.map(([name, value]) => `${name} ${number(value)}`)].filter(Boolean).join(" · ");
    this.bar.style.width = `${100 * share}%`;
    this.progress.setAttribute("aria-valuenow", Math.round(100 * share));
    this.draw(now, metrics, history);
  }

  draw(now, metrics, history) {
    const names = metrics.map(([name]) => name);
    const key = `${stageName(now)} ${now.unit} ${names}`;
    if (!names.length) {
      this.key = null;
      this.chart.replaceChildren();
    } else if (this.key !== key || history) {
      const points = history?.length ? history : [{ done: now.done, ...now.metrics }];
      this.key = key;
      const x = { label: now.unit, values: points.map((point) => point.done) };
      this.figures = names.map((name) => measureChart(name, x, points.map((point) => point[name] ?? null), 160));
      this.chart.replaceChildren(h("div", { class: "columns" }, this.figures));
    } else {
      this.figures.forEach((figure, index) => appendPoint(figure, now.done, [metrics[index][1]]));
    }
  }
}

function pipeline({ stages, state, run }) {
  const last = stages.findLastIndex((stage) => stage.state === "begun");
  const way = h("ol", { class: "pipeline" }, stages.map((stage, index) => {
    const broken = state !== "running" && index === last && stage.state === "begun";
    const kind = stage.state === "begun" ? (broken ? "broken" : "now") : stage.state;
    const told = { done: duration(stage.seconds), now: "at work", broken: state === "failed" ? "failed here" : "ended here", ahead: "ahead" }[kind];
    return h("li", { class: kind, "aria-current": kind === "now" ? "step" : null }, h("b", {}, stageName(stage)), h("span", { class: kind === "ahead" && "ahead" }, told));
  }));
  return [way, roles(run)];
}

function fidelity(way) {
  const x = { label: "", values: way.map((_, i) => i), names: way.map((one) => one.label.replace("round ", "")) };
  const nll = (slice) => ({ label: slice, values: way.map((one) => one[slice]?.held_out_nll ?? null), errors: way.map((one) => one[slice]?.stderr ?? null) });
  const top1 = (slice) => ({ label: slice, values: way.map((one) => one[slice]?.top1_agreement ?? null) });
  const known = (values) => values.some((value) => value !== null);
  const test = known(nll("test").values);
  const kl = way.map((one) => one.true_kl?.kl ?? null);
  const charts = [
    lineChart({ title: "Held-out NLL of the teacher's text", unit: "nats a token", x, series: [nll("validation"), ...(test ? [{ ...nll("test"), dashed: true }] : [])] }),
    lineChart({ title: "Top-1 agreement with the teacher's tokens", unit: "share of tokens", x, share: true, series: [top1("validation"), ...(test ? [{ ...top1("test"), dashed: true }] : [])] }),
  ];
  if (known(kl)) {
    charts.push(lineChart({ title: "True KL from the sealed teacher (test slice)", unit: "nats a token", x, series: [
      { label: "true KL", values: kl, errors: way.map((one) => one.true_kl?.stderr ?? null) },
    ] }));
  }
  return [h("p", {}, verdict(way)), h("div", { class: "columns" }, charts)];
}

function verdict(way) {
  const measured = way.filter((one) => one.validation && one.decision !== "reject");
  if (measured.length < 2) return "Only its start is measured so far.";
  const [first, last] = [measured[0], measured.at(-1)];
  const change = last.validation.held_out_nll - first.validation.held_out_nll;
  const known = [first, last].every((one) => one.validation.stderr !== null);
  const error = Math.hypot(first.validation.stderr, last.validation.stderr) / Math.SQRT2;
  const kls = way.filter((one) => one.true_kl);
  const kl = kls.length > 1 ? ` The true KL went from ${withError(kls[0].true_kl.kl, kls[0].true_kl.stderr, 3)} to ${withError(kls.at(-1).true_kl.kl, kls.at(-1).true_kl.stderr, 3)}.` : "";
  return `From ${first.label} to ${last.label} the validation NLL changed by ${signed(change, 3)} nats a token${known ? ` (each is known within ±${number(error, 3)} for other text like it; what a round changed, compared record by record, far better)` : ""}.${kl}`;
}

function labels({ student, soft }) {
  const parts = [];
  if (student?.loss_share && Object.keys(student.loss_share).length > 1) {
    const shares = (given) => Object.entries(given).map(([name, share]) => ({ label: name === "kl" ? "weighted KL" : name.toUpperCase(), share }));
    parts.push(h("h3", {}, "What moved the student"), shareBar("of the loss", shares(student.loss_share)));
    if (Object.keys(student.grad_share ?? {}).length) parts.push(shareBar("of the gradient", shares(student.grad_share)));
  }
  if (soft) {
    const mass = Object.entries(soft.mass_at_k).map(([k, share]) => `top ${k}: ${percent(share)}`).join(", ");
    const kept = soft.method === "drawn" ? `${soft.k} draws` : `the ${soft.k} likeliest`;
    parts.push(h("h3", {}, "What the soft labels hold"),
      h("p", {}, `${whole(soft.tokens)} tokens with ${kept} each, ${number(soft.bytes_per_token, 1)} bytes a token.`, mass && ` Mean mass of ${mass}.`,
        ` The text's own tokens have probability ${percent(soft.text_probability)} (geometric mean; near 100 % the labels only repeat the text).`,
        soft.answers && ` Beside them ${whole(soft.answers.tokens)} of the proxy's own answers to ${whole(soft.answers.records)} prompts.`));
    if (soft.share_mass_over_095) {
      const { k, share } = soft.share_mass_over_095;
      parts.push(lineChart({ title: "Tokens whose K likeliest hold more than 95 %", unit: "share of tokens", x: { label: "K", values: k }, series: [{ label: "share", values: share }], share: true, height: 180 }));
    }
  }
  return parts;
}

function trust({ histogram, mu, gamma, reduction, adapter, calibration }, id) {
  const { edges, counts } = histogram;
  const examples = h("div", { role: "status" }, h("p", { class: "soft" }, "Press a bar to read records behind it."));
  const bars = counts.map((count, i) => ({ value: count, told: `weight ${edges[i].toFixed(2)} to ${edges[i + 1].toFixed(2)}: ${plural(count, "record")}` }));
  const show = async (i) => {
    try {
      const { records } = await get(`runs/${id}/trust`, { low: edges[i], high: edges[i + 1], limit: 5 });
      const inside = records.filter((one) => one.weight >= edges[i] && (one.weight < edges[i + 1] || i === counts.length - 1));
      examples.replaceChildren(h("h3", {}, bars[i].told), ...inside.map(example));
    } catch (error) {
      examples.replaceChildren(problem(error));
    }
  };
  const score = reduction === "token_mean" ? "mean log p a token" : "log p of the completion";
  return [
    h("p", {}, gamma
      ? `w = sigmoid((${score} ${mu < 0 ? "+" : "−"} ${number(Math.abs(mu), 2)}) / ${number(gamma, 2)}), by ${adapter}.`
      : `w = 0.5: every record has the same ${score}, ${number(mu, 2)}, by ${adapter}.`,
      calibration ? ` Rank correlation of the weight with the true KL: ${calibration}. (Below 0, what is trusted more is closer to the teacher.)` : ""),
    barButtons("records by trust weight", bars, show),
    h("div", { class: "ends" }, h("span", {}, "0: the proxy would not have said it"), h("span", {}, "1: it would")),
    examples,
  ];
}

function example(record) {
  return h("div", { class: "pair" },
    h("p", { class: "soft" }, `${record.record_id}: weight ${number(record.weight, 3)}, log p ${number(record.sequence_logp, 1)} over ${plural(record.tokens, "token")}`),
    h("div", { class: "text-block" }, record.prompt), h("div", { class: "text-block" }, record.completion));
}

function student(facts) {
  const phase = facts.on_policy;
  const rows = studentRows(facts);
  return [
    rows.length ? table(rows, ["student", "NLL a token", "top-1", "true KL"].map((title, i) => [title, (row) => row[i], i === 0]), "The student on the test slice") : h("p", { class: "soft" }, "The test slice has not been looked at yet."),
    validationCurve(facts.curve ?? [], ""),
    ...(phase ? [h("h3", {}, "Then on its own samples"), h("p", {}, onPolicyText(phase)), validationCurve(phase.curve, "on its own samples: ")] : []),
  ].filter(Boolean);
}

/** Each student on the test slice, and what the run's own is better by than SFT. */
function studentRows({ before, offline, after, true_kl: kls, sft }) {
  const known = [["before", before, kls.before], ["after the distillation", offline, kls.offline], ["after", after, kls.after], ["SFT on the same text", sft?.after, sft?.true_kl]];
  const rows = known.filter(([, measured]) => measured).map(([who, measured, kl]) =>
    [who, withError(measured.held_out_nll, measured.stderr), percent(measured.top1_agreement), kl ? withError(kl.kl, kl.stderr) : ""]);
  const less = sft?.student_less_sft;
  if (less) rows.push(["student less SFT, record by record", signedWithError(less.nll, less.nll_stderr), "", signedWithError(less.true_kl, less.true_kl_stderr)]);
  return rows;
}

function onPolicyText({ kept, drift }) {
  const what = kept ? `The student is as it was after step ${whole(kept)} of this phase.` : "No point of this phase was better than its start: the student is as the distillation left it.";
  return drift ? `${what} The phase ended early: ${drift}.` : what;
}

function validationCurve(points, when) {
  const x = { label: "step", values: points.map((p) => p.step) };
  return points.length > 1 ? h("div", { class: "columns" },
    lineChart({ title: `${when}NLL on the validation slice`, unit: "nats a token", x, series: [{ label: "NLL", values: points.map((p) => p.held_out_nll), errors: points.map((p) => p.stderr) }] }),
    lineChart({ title: `${when}top-1 agreement on the validation slice`, unit: "share of tokens", x, share: true, series: [{ label: "top-1", values: points.map((p) => p.top1_agreement) }] })) : null;
}

function costs(stages) {
  const total = stages.reduce((sum, stage) => sum + stage.seconds, 0);
  return table(stages, [
    ["stage", stageName, true],
    ["time", (stage) => duration(stage.seconds)],
    ["share", (stage) => percent(stage.seconds / total, 0)],
    ["records", (stage) => whole(stage.records)],
    ["tokens", (stage) => whole(stage.tokens)],
    ["tokens a second", (stage) => (stage.tokens ? whole(stage.tokens / (stage.busy_seconds || stage.seconds)) : "")],
    ["device-hours", (stage) => number(((stage.busy_seconds ?? stage.seconds) * stage.devices) / 3600, 3)],
    ["attempts", (stage) => (stage.attempts > 1 ? stage.attempts : "")],
  ], "Where the time went");
}

function corpus(facts) {
  const slices = ["validation", "test", "warmup", "alignment", "distillation", "training"];
  return [
    h("p", {}, `${plural(facts.records, "record")}, ${whole(facts.tokens)} completion tokens: ${slices.filter((name) => facts[name] !== null).map((name) => `${whole(facts[name])} ${name}`).join(", ")}.`),
    h("p", {}, `Dropped: ${droppedText(facts.dropped) || "none"}.`, facts.truncated ? ` Truncated: ${whole(facts.truncated)}.` : "",
      facts.beyond_limit ? ` Left out by corpus.training_limit: ${whole(facts.beyond_limit)}.` : ""),
  ];
}

function restarts(claims) {
  return table(claims, [
    ["coordinator", (one) => `epoch ${one.epoch}`, true], ["since", (one) => moment(one.time), true],
    ["on", (one) => one.host ?? "", true], ["Ray job", (one) => one.job ?? "", true],
  ], "Coordinators");
}

/** [title, what of the run's facts it shows or null, how, and a word to the reader] */
const PARTS = [
  ["What it came to", (f) => f.outcome, outcome],
  ["The way from text to student", (f) => ({ stages: f.pipeline, state: f.status.state, run: f.run }), pipeline],
  ["Does the proxy come closer to the teacher?", (f) => (f.fidelity.length ? f.fidelity : null), fidelity,
    "After the warm-up, each round asks the proxy for its own answers and teaches it to prefer the teacher's."],
  ["What the rounds did", (f) => (f.rounds.length || Object.keys(f.steps).length ? { rounds: f.rounds, steps: f.steps } : null), rounds,
    "DPO accuracy is the share of pairs whose chosen side gained more than the rejected one (margin above 0). Over a round's steps it counts the first one, at which every margin is 0; after the round its own adapter judges the same pairs."],
  ["How far each record is trusted", (f) => (f.trust?.histogram ? f.trust : null), trust,
    "A record counts for the student by how well the aligned proxy models the teacher's answer to it."],
  ["What the student learned from", (f) => (f.soft_labels || f.student ? { student: f.student, soft: f.soft_labels } : null), labels],
  ["The student against its start", (f) => f.student, student],
  ["Where the time went", (f) => { const done = f.pipeline.filter((stage) => stage.state === "done"); return done.length ? done : null; }, costs],
  ["The corpus", (f) => f.corpus, corpus],
  ["Coordinators", (f) => (f.coordinators.length > 1 ? f.coordinators : null), restarts, "Each start or restart is an epoch; a later one fences off those before."],
];

/** The run's events, latest last, older ones on request. */
class Log {
  constructor(id) {
    this.id = id;
    this.list = h("ol", { class: "log", tabindex: "0", "aria-label": "events" });
    this.older = h("button", { type: "button", onclick: () => this.loadOlder() }, "Older events");
    this.element = h("section", {}, h("h2", {}, "Events"), this.older, this.list);
  }

  async load() {
    const { events } = await get(`runs/${this.id}/events`);
    this.list.replaceChildren(...events.map(line));
    this.first = events[0]?.segment ?? 1;
    this.older.hidden = this.first <= 1 || Boolean(reportOf);
    queueMicrotask(() => (this.list.scrollTop = this.list.scrollHeight));
    return events.at(-1)?.segment ?? 0;
  }

  async loadOlder() {
    const { events } = await get(`runs/${this.id}/events`, { before: this.first, limit: 100 });
    this.list.prepend(...events.map(line));
    this.first = events[0]?.segment ?? 1;
    this.older.hidden = this.first <= 1;
  }

  add(event) {
    const atEnd = this.list.scrollTop + this.list.clientHeight >= this.list.scrollHeight - 8;
    this.list.append(line(event));
    while (this.list.children.length > LOG_MOST) this.list.firstChild.remove();
    if (atEnd) this.list.scrollTop = this.list.scrollHeight;
  }
}

function line(event) {
  return h("li", {}, h("time", { datetime: new Date(1000 * event.time).toISOString() }, clock(event.time)),
    h("span", { class: BAD.includes(event.event) && "bad" }, eventText(event)));
}
