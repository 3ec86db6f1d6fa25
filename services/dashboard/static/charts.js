import { h, table } from "./dom.js";
import { number, percent, signedWithError, withError } from "./format.js";

const PALETTE = ["--full", "--blue", "--green", "--violet", "--amber"];

/**
 * Lines over a shared axis: `series` is [{label, values, errors or ranges, dashed, apart}], `apart` without a line, `x` {label, values, names}, `marks`
 * [{value, label}] are lines across, `share` says that all values are shares.
 * What has a known error is drawn with it, and the axis takes it in; else the axis takes in 0. Either way noise looks small.
 * The numbers stand below, for screen readers and for whoever wants them.
 */
export function lineChart({ title, x, series, unit, digits = 4, share = false, marks = [], height = 220 }) {
  const chart = { x, unit, marks, series: series.map((s) => ({ ...s, ranges: s.ranges ?? rangesOf(s) })), told: (value) => (share ? percent(value) : number(value, digits)), tick: (value) => tickText(value, share) };
  const holder = h("div", { class: "plot", style: { height: `${height}px` }, role: "img", "aria-label": describe(title, chart) });
  const observer = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (!width || !holder.isConnected) return;
    if (holder.plot) holder.plot.setSize({ width, height });
    else holder.plot = new uPlot(options(chart, width, height), [x.values, ...series.map((s) => s.values)], holder);
  });
  observer.observe(holder);
  const rows = x.values.map((_, index) => index);
  const columns = [[x.label || "at", (i) => nameOf(x, x.values[i]), true], ...chart.series.map((s) => [s.label, (i) => pointText(chart, s, i)])];
  return h("figure", {},
    h("figcaption", {}, title, legend(series)),
    holder,
    h("details", {}, h("summary", {}, "Numbers"), table(rows, columns, title)));
}

/** Means with their standard errors as dots with whiskers between `low` and `high`: [{label, value, stderr, colour}]; `ends` are words below the axis. */
export function dotPlot(title, rows, { low, high, ends, change = false }) {
  const place = (value) => `${Math.max(0, Math.min(100, (100 * (value - low)) / (high - low)))}%`;
  const told = ({ value, stderr }) => (change ? signedWithError(value, stderr) : withError(value, stderr, 3));
  return h("figure", { class: "dots" },
    h("figcaption", {}, title),
    rows.map((row) => h("div", { class: "row" },
      h("span", {}, row.label),
      h("div", { class: "track", "aria-hidden": "true" },
        low < 0 && h("i", { class: "zero", style: { left: place(0) } }),
        row.stderr !== null && h("i", { class: "whisker", style: { background: row.colour, left: place(row.value - row.stderr), right: `calc(100% - ${place(row.value + row.stderr)})` } }),
        h("i", { class: "dot", style: { background: row.colour, left: place(row.value) } })),
      h("b", {}, told(row)))),
    h("div", { class: "ends" }, ends.map((end) => h("span", {}, end))));
}

function rangesOf({ values, errors }) {
  return errors && values.map((value, i) => (value === null || value === undefined || !errors[i] ? null : [value - errors[i], value + errors[i]]));
}

function pointText({ told }, { values, errors, ranges }, i) {
  if (values[i] === null || values[i] === undefined) return "";
  if (errors?.[i]) return `${told(values[i])} ± ${told(errors[i])}`;
  return told(values[i]) + (ranges?.[i] ? ` (${told(ranges[i][0])} to ${told(ranges[i][1])})` : "");
}

function tickText(value, share) {
  const text = String(parseFloat(((share ? 100 : 1) * value).toFixed(6))).replace("-", "−");
  return share ? `${text} %` : text;
}

/** Adds a point to a chart that `lineChart` made, or replaces its last one where x is the same. */
export function appendPoint(figure, x, values) {
  const plot = figure.querySelector(".plot").plot;
  if (!plot) return;
  const data = plot.data.map((column) => [...column]);
  const keep = data[0].findLastIndex((one) => one < x) + 1;
  [x, ...values].forEach((value, column) => data[column].splice(keep, Infinity, value));
  plot.setData(data);
}

/** Parts of a whole as one bar with its numbers: [{label, share}]. */
export function shareBar(title, parts) {
  const told = parts.map(({ label, share }) => `${label} ${percent(share)}`).join(", ");
  return h("div", { class: "share" },
    h("span", { class: "share-title" }, title),
    h("div", { class: "share-bar", role: "img", "aria-label": `${title}: ${told}` },
      parts.map(({ share }, index) => h("span", { style: { width: `${100 * share}%`, background: `var(${PALETTE[index]})` } }))),
    h("span", { class: "share-told" }, told));
}

/** Bars that can be pressed: `bars` is [{label, value, told}]. */
export function barButtons(title, bars, onPress) {
  const largest = Math.max(...bars.map((bar) => bar.value), 1);
  return h("div", { class: "bars", role: "group", "aria-label": title },
    bars.map((bar, index) =>
      h("button", {
        type: "button", class: "bar", "aria-pressed": "false", "aria-label": bar.told, title: bar.told, disabled: !bar.value,
        onclick: (event) => {
          for (const one of event.currentTarget.parentElement.children) one.setAttribute("aria-pressed", "false");
          event.currentTarget.setAttribute("aria-pressed", "true");
          onPress(index);
        },
      },
      h("span", { style: { height: `${(100 * bar.value) / largest}%` } }))));
}

function describe(title, { x, series, told }) {
  const ends = series.map((s) => {
    const known = s.values.filter((value) => value !== null && value !== undefined);
    return known.length ? `${s.label} from ${told(known[0])} to ${told(known.at(-1))}` : `${s.label}: nothing yet`;
  });
  return `${title}${x.label ? `, over ${x.label}` : ""}: ${ends.join("; ")}`;
}

function legend(series) {
  if (series.length < 2) return null;
  return h("span", { class: "legend" }, series.map((s, index) =>
    h("span", {}, h("i", { style: { background: `var(${PALETTE[index]})` } }), s.label)));
}

function nameOf(x, value) {
  return x.names?.[x.values.indexOf(value)] ?? String(value);
}

function options({ x, series, unit, marks, told, tick }, width, height) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" };
  const few = x.values.length <= 40;
  return {
    width,
    height,
    legend: { show: false },
    cursor: { drag: { x: false, y: false }, points: { size: 7 } },
    scales: { x: { time: false, range: (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) }, y: { range: (_, low, high) => roomFor(series, marks, low, high) } },
    axes: [
      { ...axis, label: x.label, labelSize: 18, size: 30, values: (_, splits) => splits.map((value) => (x.names ? x.names[x.values.indexOf(value)] ?? "" : Number.isInteger(value) ? value : "")), ...(x.names ? { splits: () => x.values } : {}) },
      { ...axis, label: unit, labelSize: 18, size: 58, values: (_, splits) => splits.map(tick) },
    ],
    series: [
      {},
      ...series.map((s, index) => ({
        label: s.label,
        stroke: colour(PALETTE[index]),
        width: 2,
        dash: s.dashed ? [6, 4] : undefined,
        spanGaps: true,
        ...(s.apart ? { paths: () => null } : {}),
        points: { show: few, size: 6, fill: colour(PALETTE[index]) },
      })),
    ],
    hooks: {
      drawAxes: [(plot) => marks.forEach((mark) => markLine(plot, mark, colour("--soft")))],
      draw: [(plot) => {
        series.forEach((s, index) => s.ranges && whiskers(plot, s.ranges, colour(PALETTE[index])));
        marks.forEach((mark) => markLabel(plot, mark, colour("--soft"), colour("--card")));
      }],
      setCursor: [tip(x, series, told)],
    },
    padding: [10, x.names ? 32 : 12, 0, 0], // a name stands under the middle of its point, the last one at the edge
  };
}

/** The axis takes in whiskers and marks, 0 where no error is known, and leaves some air. */
function roomFor(series, marks, low, high) {
  const whiskers = series.flatMap((s) => s.ranges ?? []).filter((range) => range !== null).flat();
  const others = [...whiskers, ...marks.map((mark) => mark.value), ...(whiskers.length ? [] : [0])];
  [low, high] = [Math.min(low, ...others), Math.max(high, ...others)];
  const air = 0.06 * (high - low || Math.abs(high) || 1);
  return [low === 0 ? 0 : low - air, high === 0 ? 0 : high + (marks.length ? 2 : 1) * air];
}

function markLine(plot, { value }, colour) {
  const { ctx: context, bbox } = plot;
  const top = plot.valToPos(value, "y", true);
  context.save();
  context.strokeStyle = colour;
  context.lineWidth = devicePixelRatio;
  context.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
  context.beginPath();
  context.moveTo(bbox.left, top);
  context.lineTo(bbox.left + bbox.width, top);
  context.stroke();
  context.restore();
}

/** Over the lines, with an edge of its ground; below its mark where that is at the top. */
function markLabel(plot, { value, label }, colour, ground) {
  const { ctx: context, bbox } = plot;
  const mark = plot.valToPos(value, "y", true);
  const below = mark - bbox.top < 16 * devicePixelRatio;
  context.save();
  context.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.strokeStyle = ground;
  context.fillStyle = colour;
  context.lineWidth = 4 * devicePixelRatio;
  const place = [label, bbox.left + bbox.width / 2, mark + (below ? 13 : -4) * devicePixelRatio];
  context.strokeText(...place);
  context.fillText(...place);
  context.restore();
}

function whiskers(plot, ranges, colour) {
  const context = plot.ctx;
  context.save();
  context.strokeStyle = colour;
  context.globalAlpha = 0.55;
  context.lineWidth = 1.5 * devicePixelRatio;
  ranges.forEach((range, i) => {
    if (range === null) return;
    const left = plot.valToPos(plot.data[0][i], "x", true);
    context.beginPath();
    context.moveTo(left, plot.valToPos(range[0], "y", true));
    context.lineTo(left, plot.valToPos(range[1], "y", true));
    context.stroke();
  });
  context.restore();
}

/** What the pointer is over, in words. */
function tip(x, series, told) {
  return (plot) => {
    plot.tip ??= plot.over.appendChild(h("div", { class: "tip" }));
    const { idx } = plot.cursor;
    plot.tip.hidden = idx === null || idx === undefined;
    if (plot.tip.hidden) return;
    const values = series.map((s, index) => [s.label, plot.data[index + 1][idx]]).filter(([, value]) => value !== null && value !== undefined);
    plot.tip.textContent = [`${x.label} ${nameOf(x, plot.data[0][idx])}`.trim(), ...values.map(([label, value]) => `${label} ${told(value)}`)].join("\n");
    plot.tip.classList.toggle("left", plot.cursor.left > plot.over.clientWidth / 2);
  };
}
