// The page of all models: search, facets, sorting, heat strips, and a choice to compare.
import { byId, el, esc, fail, heat, json, modelPage, number, onBack, p, root, setState, size, state, strip, table } from "./common.js";

const SIZES = [["under 100M", 0, 1e8], ["100M to 1B", 1e8, 1e9], ["1B to 10B", 1e9, 1e10], ["10B and more", 1e10, Infinity]];
const sizeOf = (entry) => (SIZES.find(([, from, to]) => entry.parameters >= from && entry.parameters < to) || ["unknown"])[0];
const FACETS = {
  family: (entry) => entry.family || "unknown",
  architecture: (entry) => entry.architecture || "unknown",
  size: sizeOf,
  format: (entry) => entry.format || "unknown",
  date: (entry) => (entry.finished || "unknown").slice(0, 7),
  kind: (entry) => entry.difference ? "differences" : "models",
};
const MOST = 6;

const chosen = new Set();
function choosing() {
  const bar = byId("compare-bar");
  bar.hidden = chosen.size === 0;
  const link = byId("compare-link");
  const ready = chosen.size >= 2 && chosen.size <= MOST;
  link.textContent = chosen.size < 2 ? "Choose one more to compare" : chosen.size > MOST ? `Choose at most ${MOST}` : `Compare ${chosen.size} models`;
  if (ready) link.href = `${root}/compare.html?models=${[...chosen].map(encodeURIComponent).join(",")}`;
  else link.removeAttribute("href");
}

const columns = [
  { title: "Compare", order: false, search: false, class: "choose", value: () => "",
    html: (one) => `<input type="checkbox" value="${esc(one.key)}" aria-label="Compare ${esc(one.name)}"${chosen.has(one.key) ? " checked" : ""}>` },
  { title: "Model", name: "model", class: "name", value: (one) => one.name, text: (one) => [one.name, one.family, one.architecture, one.base, one.format].join(" "),
    html: (one) => `<a href="${esc(modelPage(one.key))}">${esc(one.name)}</a><small>${esc([one.architecture, one.format, one.failed ? one.failed + " failed" : ""].filter(Boolean).join(" · "))}</small>` },
  { title: "Roles by decile", order: false, search: false, class: "heat", value: () => "", html: strip },
  { title: "Mean p", name: "p", class: "n", search: false, value: (one) => one.p, html: (one) => `<span class="cell" style="background:${heat(one.p)}">${p(one.p)}</span>` },
  { title: "Above, %", name: "above", class: "n", search: false, value: (one) => one.above, html: (one) => number(one.above) },
  { title: "Below, %", name: "below", class: "n", search: false, value: (one) => one.below, html: (one) => number(one.below) },
  { title: "Least random", name: "learned", class: "wide", value: (one) => one.learned || "" },
  { title: "Parameters", name: "parameters", class: "n", search: false, value: (one) => one.parameters ?? null, html: (one) => size(one.parameters) },
  { title: "Matrices", name: "matrices", class: "n wide", search: false, value: (one) => one.matrices, html: (one) => number(one.matrices) },
  { title: "Scanned", name: "scanned", class: "wide", value: (one) => one.finished || "", html: (one) => esc((one.finished || "").slice(0, 10)) },
];
const place = (name) => columns.findIndex((column) => column.name === name);

async function start() {
  const index = await json("index.json");
  const facets = byId("facets");
  const selects = {};
  for (const [name, of] of Object.entries(FACETS)) {
    const counts = new Map();
    for (const entry of index.models) counts.set(of(entry), (counts.get(of(entry)) || 0) + 1);
    if (counts.size < 2) continue;
    const order = name === "size" ? (a, b) => SIZES.findIndex(([one]) => one === a) - SIZES.findIndex(([one]) => one === b) : name === "date" ? (a, b) => b.localeCompare(a) : (a, b) => a.localeCompare(b);
    const options = [...counts.keys()].sort(order).map((value) => el("option", { value }, `${value} (${counts.get(value)})`));
    selects[name] = el("select", { id: `facet-${name}` }, el("option", { value: "" }, name === "kind" ? "models and differences" : `any ${name}`), ...options);
    selects[name].addEventListener("change", () => { setState({ [name]: selects[name].value || (name === "kind" ? "all" : "") }); show(); });
    facets.append(el("label", {}, name[0].toUpperCase() + name.slice(1), selects[name]));
  }
  const clear = el("button", { type: "button", id: "clear" }, "Clear");
  clear.addEventListener("click", () => { setState(Object.fromEntries([...Object.keys(FACETS), "q", "sort"].map((name) => [name, null]))); show(); });
  if (Object.keys(selects).length) facets.append(clear);

  const wanted = () => {
    const now = state();
    const sort = (now.get("sort") || "p:asc").split(":");
    const column = place(sort[0]);
    return {
      rows: index.models.filter((entry) => Object.keys(selects).every((name) => {
        const value = now.get(name) ?? (name === "kind" ? "models" : "");
        return !value || value === "all" || FACETS[name](entry) === value;
      })),
      order: [[column < 0 ? place("p") : column, sort[1] === "desc" ? "desc" : "asc"]],
      search: now.get("q") || "",
    };
  };
  const first = wanted();
  let silent = true;
  const made = await table(byId("models"), columns, first.rows, { order: first.order, search: first.search, total: index.models.length, caption: "Models of the store", empty: "No model matches. Clear the filters to see all." });
  const show = () => {
    silent = true;
    const now = wanted();
    for (const [name, select] of Object.entries(selects)) {
      const value = state().get(name) ?? (name === "kind" ? "models" : "");
      select.value = value === "all" ? "" : value;
    }
    made.clear().rows.add(now.rows).order(now.order).search(now.search).draw();
    byId("shown").textContent = `${now.rows.length.toLocaleString("en")} of ${index.models.length.toLocaleString("en")} shown`;
    silent = false;
  };
  made.on("order.dt", () => {
    if (silent) return;
    const [[column, direction]] = made.order().length ? made.order() : [[place("p"), "asc"]];
    setState({ sort: column === place("p") && direction === "asc" ? null : `${columns[column].name}:${direction}` });
  });
  made.on("search.dt", () => { if (!silent) setState({ q: made.search() }, { push: false }); });
  byId("models").addEventListener("change", (event) => {
    if (event.target.type !== "checkbox") return;
    if (event.target.checked) chosen.add(event.target.value); else chosen.delete(event.target.value);
    choosing();
  });
  onBack(show);
  show();
  choosing();
}
start().catch(fail);
