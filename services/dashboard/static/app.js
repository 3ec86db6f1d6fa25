import { h, problem } from "./dom.js";
import { reportOf } from "./api.js";
import { exploreView } from "./explore.js";
import { roundView } from "./round.js";
import { runView } from "./run.js";
import { runsView } from "./runs.js";
import { studyView } from "./study.js";

const ROUTES = [
  [/^$/, runsView],
  [/^runs\/([^/]+)$/, runView],
  [/^runs\/([^/]+)\/rounds\/(\d+)$/, roundView],
  [/^runs\/([^/]+)\/explore$/, exploreView],
  [/^studies\/([^/]+)$/, studyView],
];
const THEMES = ["auto", "light", "dark"];
const THEME = "proxykd-theme";

let shown = { close() {} };
let visit = 0;

/** Shows the view that the address names. A view is {crumbs, element, close}; `shell` is what it may say outside. */
async function route() {
  const mine = ++visit;
  shown.close();
  shown = { close() {} };
  say("");
  const path = decodeURIComponent(location.hash.replace(/^#\/?/, "")) || (reportOf ? `runs/${reportOf}` : "");
  const [pattern, view] = ROUTES.find(([one]) => one.test(path)) ?? [null, nowhere];
  const main = document.getElementById("main");
  try {
    const next = await view(...(pattern ? pattern.exec(path).slice(1) : [path]), { say });
    if (mine !== visit) return next.close?.();
    shown = { close() {}, ...next };
    main.replaceChildren(next.element);
    setCrumbs(next.crumbs);
  } catch (error) {
    if (mine !== visit) return;
    main.replaceChildren(problem(error), h("p", {}, h("a", { href: "#/" }, "All runs")));
    setCrumbs([[path]]);
  }
  if (mine > 1) main.focus({ preventScroll: true }); // a new page within the page; the browser's own first one is at the top
  scrollTo(0, 0);
}

function nowhere(path) {
  throw new Error(`There is no page ${path}.`);
}

function setCrumbs(crumbs) {
  const parts = crumbs.flatMap(([label, address]) => [" / ", address && !reportOf ? h("a", { href: address }, label) : h("span", { "aria-current": "page" }, label)]);
  document.getElementById("path").replaceChildren(...parts);
  document.title = [...crumbs.map(([label]) => label), "proxykd"].join(" · ");
}

/** What stands beside the breadcrumb: whether the page is live. */
function say(text, lost = false) {
  const place = document.getElementById("link");
  place.textContent = text;
  place.classList.toggle("lost", lost);
}

function applyTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = `Theme: ${theme}`;
}

function remembered() {
  try {
    return localStorage.getItem(THEME) ?? "auto";
  } catch { // a file opened where nothing may be stored
    return "auto";
  }
}

document.getElementById("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % THEMES.length];
  try {
    localStorage.setItem(THEME, next);
  } finally {
    applyTheme(next);
    route(); // charts take their colours when they are drawn
  }
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", route);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address says which page this is
  document.getElementById("main").focus();
});
document.querySelector(".mark").hidden = false;
addEventListener("hashchange", route);
applyTheme(remembered());
route();
