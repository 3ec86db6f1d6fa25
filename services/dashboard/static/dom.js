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

/** A table; `columns` is [title, value of a row, and whether it is text]. */
export function table(rows, columns, caption) {
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {},
      h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, columns.map(([title, , text]) => h("th", { scope: "col", class: text && "text" }, title)))),
      h("tbody", {}, rows.map((row) =>
        h("tr", {}, columns.map(([, value, text]) => h("td", { class: text && "text" }, value(row))))))));
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
