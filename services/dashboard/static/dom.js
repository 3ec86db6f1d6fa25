/** An element. Text becomes text nodes, so that nothing that a model or a user wrote is ever read as markup. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/**
 * A table; `columns` is [title, value of a row, whether it is text, and whether a phone may do without it]. A column that no row has anything in is left out.
 * On a phone a row of more than two columns is a stack of lines, each with its title; the roles outlast that.
 */
export function table(rows, columns, caption) {
  const filled = columns.map(([title, value, text, minor]) => ({ title, kind: [text && "text", minor && "minor"].filter(Boolean).join(" ") || null, cells: rows.map(value) }))
    .filter(({ cells }) => !cells.length || cells.some((cell) => cell !== "" && cell !== null && cell !== undefined && cell !== false));
  const stacked = filled.length > 2;
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", { role: "table", class: stacked && "stacked" },
      h("caption", { class: "hidden" }, caption),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, filled.map(({ title, kind }) => h("th", { scope: "col", role: "columnheader", class: kind }, title)))),
      h("tbody", { role: "rowgroup" }, rows.map((_, i) =>
        h("tr", { role: "row" }, filled.map(({ title, kind, cells }) => h("td", { role: "cell", "data-title": title, class: kind }, cells[i] ?? "")))))));
}

/** A part of a page that is drawn anew only when what it shows has changed. */
export class Part {
  constructor(title, draw, note) {
    this.draw = draw;
    this.shown = null;
    this.body = h("div");
    this.element = h("section", { hidden: true }, h("h2", {}, title), note && h("p", { class: "note" }, note), this.body);
  }

  /** `facts` null hides it. */
  show(facts) {
    const text = JSON.stringify(facts ?? null);
    if (text === this.shown) return;
    this.shown = text;
    this.element.hidden = facts === null || facts === undefined;
    this.body.replaceChildren(...(this.element.hidden ? [] : [this.draw(facts)].flat(Infinity)));
  }
}

export function problem(error) {
  return h("p", { class: "problem", role: "alert" }, error.message);
}
