// Nightly scans: the list of nights, and the digest of the chosen one.
import { byId, el, fail, json, known, modelPage, number, onBack, p, root, setState, size, state } from "./common.js";

const day = (text) => (text || "").slice(0, 16).replace("T", " ");
const cell = (name, value) => {
  if (!known(value)) return "";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (["commit", "revision", "other_revision"].includes(name)) return String(value).slice(0, 12);
  if (["parameters", "bytes"].includes(name)) return size(value);
  if (["share", "relative_change"].includes(name)) return `${Number((100 * value).toPrecision(3))} %`;
  if (["p", "p_scale"].includes(name)) return p(value);
  if (["measure", "defect"].includes(name)) return String(value).replaceAll("_", " ");
  return typeof value === "number" ? number(value) : String(value);
};
const NAMES = ["repository", "model", "other_model", "base_model", "tuned_model"];
let index = null;
function shown(name, value) {  // a model that the site has is a link to its page
  const entry = NAMES.includes(name) ? index.models.find((one) => one.name === value) : null;
  return entry ? el("a", { href: modelPage(entry.key) }, value) : cell(name, value);
}
// columns: name -> heading; one that is empty in every row is left out.
function rows(found, columns, label) {
  const names = Object.keys(columns).filter((name) => found.some((row) => cell(name, row[name]) !== ""));
  const right = new Set(names.filter((name) => found.every((row) => !known(row[name]) || typeof row[name] === "number")));
  const head = el("tr", {}, ...names.map((name) => el("th", { scope: "col", class: right.has(name) ? "n" : "" }, columns[name])));
  const body = found.slice(0, 100).map((row) => el("tr", {}, ...names.map((name) => el("td", { class: right.has(name) ? "n" : ["reason", "example"].includes(name) ? "wrap" : NAMES.includes(name) ? "name" : "" }, shown(name, row[name])))));
  return el("div", {}, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...body))),
    found.length > 100 ? el("p", { class: "soft" }, `${(found.length - 100).toLocaleString("en")} more are in the JSON file.`) : null);
}
const RELEASES = { repository: "model", commit: "commit", reason: "reason" };
const LISTS = [["Failed", "failed"], ["Waiting", "waiting"], ["Skipped", "skipped"]];

async function show(nights) {
  const id = state().get("night") || nights[0].night_id;
  const night = nights.find((one) => one.night_id === id);
  if (!night) throw new Error("The store has no such night: choose one from the list.");
  for (const link of byId("nights").querySelectorAll("a")) {
    if (link.dataset.night === id) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
  }
  const found = await json(`nights/${encodeURIComponent(id)}.json`);
  const sections = index.sections.filter((one) => one.query in found.stands_out);
  const [some, none] = [true, false].map((has) => sections.filter((one) => found.stands_out[one.query].length > 0 === has));
  const empty = LISTS.filter(([, key]) => !found[key].length).map(([title]) => title.toLowerCase());
  byId("digest").replaceChildren(...[
    el("h2", { tabindex: "-1" }, `Night of ${day(night.started_at)} UTC`),
    el("p", {}, `${number(night.listed)} models listed, ${number(night.new)} of them new releases: ${number(night.scanned)} scanned, ${number(night.failed)} failed, ${number(night.skipped)} skipped, ${number(night.waiting)} waiting. `,
      el("a", { href: `${root}/nights/${encodeURIComponent(id)}.html` }, "The digest as a page of text"), ", ", el("a", { href: `${root}/nights/${encodeURIComponent(id)}.json` }, "JSON")),
    el("h3", {}, "What is new"),
    found.new.length ? rows(found.new, { repository: "model", commit: "commit", parameters: "parameters", task: "task", license: "license", matrices: "matrices", reason: "note" }, "New releases")
      : el("p", { class: "soft" }, "No release was scanned."),
    el("h3", {}, "What stands out"),
    ...some.flatMap((one) => [el("h4", {}, one.title), rows(found.stands_out[one.query], one.columns, one.title)]),
    none.length ? el("ul", { class: "soft" }, ...none.map((one) => el("li", {}, one.none))) : null,
    ...LISTS.filter(([, key]) => found[key].length).flatMap(([title, key]) => [el("h3", {}, title), rows(found[key], RELEASES, title)]),
    empty.length ? el("p", { class: "soft" }, `None ${empty.join(", none ")}.`) : null].filter(Boolean));
  document.body.dataset.ready = "yes";
}

async function start() {
  index = await json("index.json");
  const { nights } = index;
  if (!nights.length) { document.body.dataset.ready = "yes"; return; }
  byId("nights").addEventListener("click", (event) => {
    const link = event.target.closest("a[data-night]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    setState({ night: link.dataset.night });
    show(nights).catch(fail);
  });
  onBack(() => show(nights).catch(fail));
  await show(nights);
}
start().catch(fail);
