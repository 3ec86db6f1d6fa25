import { h, table } from "./dom.js";

const PALETTE = ["--full", "--blue", "--green", "--violet", "--amber"];

/**
 * Lines over a shared axis: `series` is [{label, values, errors, dashed}], `x` {label, values, names}.
 * The numbers stand below, for screen readers and for whoever wants them.
 */
export function lineChart({ title, x, series, unit, digits = 4, height = 220 }) {
  const holder = h("div", { class: "plot", style: { height: `${height}px` }, role: "img", "aria-label": describe(title, x, series, digits) });
  const observer = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (!width || !holder.isConnected) return;
    if (holder.plot) holder.plot.setSize({ width, height });
    else holder.plot = new uPlot(options({ x, series, unit, digits, width, height }), [x.values, ...series.map((s) => s.values)], holder);
  });
  observer.observe(holder);
  const rows = x.values.map((_, index) => index);
  const columns = [[x.label, (i) => nameOf(x, x.values[i]), true], ...series.map((s) => [s.label, (i) => s.values[i]?.toFixed(digits) ?? ""])];
  return h("figure", {},
    h("figcaption", {}, title, legend(series)),
    holder,
    h("details", {}, h("summary", {}, "Numbers"), table(rows, columns, title)));
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
  const told = parts.map(({ label, share }) => `${label} ${(100 * share).toFixed(1)} %`).join(", ");
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

function describe(title, x, series, digits) {
  const ends = series.map((s) => {
    const known = s.values.filter((value) => value !== null && value !== undefined);
    return known.length ? `${s.label} from ${known[0].toFixed(digits)} to ${known.at(-1).toFixed(digits)}` : `${s.label}: nothing yet`;
  });
  return `${title}, over ${x.label}: ${ends.join("; ")}`;
}

function legend(series) {
  if (series.length < 2) return null;
  return h("span", { class: "legend" }, series.map((s, index) =>
    h("span", {}, h("i", { style: { background: `var(${PALETTE[index]})` } }), s.label)));
}

function nameOf(x, value) {
  return x.names?.[x.values.indexOf(value)] ?? String(value);
}

function options({ x, series, unit, digits, width, height }) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif" };
  const few = x.values.length <= 40;
  return {
    width,
    height,
    legend: { show: false },
    cursor: { drag: { x: false, y: false }, points: { size: 7 } },
    scales: { x: { time: false, range: (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) }, y: { range: (_, low, high) => roomFor(series, low, high) } },
    axes: [
      { ...axis, label: x.label, labelSize: 18, size: 30, values: (_, splits) => splits.map((value) => (x.names ? x.names[x.values.indexOf(value)] ?? "" : Number.isInteger(value) ? value : "")), ...(x.names ? { splits: () => x.values } : {}) },
      { ...axis, label: unit, labelSize: 18, size: 58 },
    ],
    series: [
      {},
      ...series.map((s, index) => ({
        label: s.label,
        stroke: colour(PALETTE[index]),
        width: 2,
        dash: s.dashed ? [6, 4] : undefined,
        spanGaps: true,
        points: { show: few, size: 6, fill: colour(PALETTE[index]) },
        value: (_, value) => value?.toFixed(digits) ?? "",
      })),
    ],
    hooks: { draw: [(plot) => series.forEach((s, index) => s.errors && whiskers(plot, s, index + 1, colour(PALETTE[index])))], setCursor: [tip(x, series, digits)] },
    padding: [10, x.names ? 32 : 12, 0, 0], // a name stands under the middle of its point, the last one at the edge
  };
}

/** The axis takes in the whiskers too, and leaves some air. */
function roomFor(series, low, high) {
  for (const { values, errors } of series) {
    errors?.forEach((error, i) => {
      if (values[i] === null || !error) return;
      low = Math.min(low, values[i] - error);
      high = Math.max(high, values[i] + error);
    });
  }
  const air = 0.06 * (high - low || Math.abs(high) || 1);
  return [low - air, high + air];
}

function whiskers(plot, series, index, colour) {
  const context = plot.ctx;
  context.save();
  context.strokeStyle = colour;
  context.globalAlpha = 0.45;
  context.lineWidth = devicePixelRatio;
  plot.data[0].forEach((x, i) => {
    const value = plot.data[index][i];
    const error = series.errors[i];
    if (value === null || value === undefined || !error) return;
    const left = plot.valToPos(x, "x", true);
    context.beginPath();
    context.moveTo(left, plot.valToPos(value - error, "y", true));
    context.lineTo(left, plot.valToPos(value + error, "y", true));
    context.stroke();
  });
  context.restore();
}

/** What the pointer is over, in words. */
function tip(x, series, digits) {
  return (plot) => {
    plot.tip ??= plot.over.appendChild(h("div", { class: "tip" }));
    const { idx } = plot.cursor;
    plot.tip.hidden = idx === null || idx === undefined;
    if (plot.tip.hidden) return;
    const values = series.map((s, index) => [s.label, plot.data[index + 1][idx]]).filter(([, value]) => value !== null && value !== undefined);
    plot.tip.textContent = [`${x.label} ${nameOf(x, plot.data[0][idx])}`, ...values.map(([label, value]) => `${label} ${value.toFixed(digits)}`)].join("\n");
    plot.tip.classList.toggle("left", plot.cursor.left > plot.over.clientWidth / 2);
  };
}
