// Nightly scans: the list of nights, and the digest of the chosen one.
import { byId, el, fail, json, known, number, onBack, p, root, setState, size, state } from "./common.js";

const day = (text) => (text || "").slice(0, 16).replace("T", " ");
const cell = (name, value) => {
  if (!known(value)) return "";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (["commit", "revision", "other_revision"].includes(name)) return String(value).slice(0, 12);
  if (["parameters", "bytes"].includes(name)) return size(value);
  if (["share", "relative_change"].includes(name)) return `${Number((100 * value).toPrecision(3))} %`;
  if (["p", "p_scale"].includes(name)) return p(value);
  return typeof value === "number" ? number(value) : String(value);
};
function rows(found, columns, nothing, label) {
  if (!found.length) return el("p", { class: "soft" }, nothing);
  const head = el("tr", {}, ...columns.map((name) => el("th", { scope: "col" }, name.replaceAll("_", " "))));
  const body = found.slice(0, 100).map((row) => el("tr", {}, ...columns.map((name) => el("td", { class: typeof row[name] === "number" ? "n" : name === "reason" ? "wrap" : "" }, cell(name, row[name])))));
  return el("div", {}, el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...body))),
    found.length > 100 ? el("p", { class: "soft" }, `${found.length - 100} more are in the JSON file.`) : null);
}
const TITLES = { broken_uploads: "Broken uploads", near_copies: "Near copies", standout_roles: "Roles unlike those of other models", standout_small_ends: "Small ends that differ from i.i.d.", standout_intruders: "Fine-tunes with many intruders" };

async function show(nights) {
  const id = state().get("night") || nights[0].night_id;
  const night = nights.find((one) => one.night_id === id);
  if (!night) throw new Error("The store has no such night: choose one from the list.");
  for (const link of byId("nights").querySelectorAll("a")) link.toggleAttribute("aria-current", link.dataset.night === id);
  const found = await json(`nights/${encodeURIComponent(id)}.json`);
  const lists = [["Failed", "failed"], ["Waiting", "waiting"], ["Skipped", "skipped"]];
  byId("digest").replaceChildren(
    el("h2", { tabindex: "-1" }, `Night of ${day(night.started_at)} UTC`),
    el("p", {}, `Listed ${number(night.listed)}, new ${number(night.new)}, scanned ${number(night.scanned)}, failed ${number(night.failed)}, skipped ${number(night.skipped)}, waiting ${number(night.waiting)}. `,
      el("a", { href: `${root}/nights/${encodeURIComponent(id)}.html` }, "As one page"), ", ", el("a", { href: `${root}/nights/${encodeURIComponent(id)}.json` }, "JSON")),
    el("h3", {}, "What is new"), rows(found.new, ["repository", "commit", "parameters", "task", "license", "matrices", "reason"], "No release was scanned.", "New releases"),
    ...Object.entries(found.stands_out).flatMap(([query, listed]) => [el("h3", {}, TITLES[query] || query),
      rows(listed, listed.length ? Object.keys(listed[0]).slice(0, 9) : [], "Nothing stands out.", TITLES[query] || query)]),
    ...lists.flatMap(([title, key]) => [el("h3", {}, title), rows(found[key], ["repository", "commit", "reason"], "None.", title)]));
  document.body.dataset.ready = "yes";
}

async function start() {
  const { nights } = await json("index.json");
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
