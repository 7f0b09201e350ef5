// What all pages share: reading files of the site, the state in the URL, numbers as text, and tables.
// Names come from checkpoints: they are inserted as text, or escaped by `esc`.

export const root = document.documentElement.dataset.root || ".";
export const byId = (id) => document.getElementById(id);

// ---- text

const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
export const esc = (text) => String(text ?? "").replace(/[&<>"']/g, (char) => ENTITIES[char]);

export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") made.style.cssText = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);
export function number(value, digits = 3) {
  if (!known(value)) return "";
  if (value && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) return Number(value).toExponential(1);
  if (Number.isInteger(value) || Math.abs(value) >= 100) return Math.round(value).toLocaleString("en");
  return Number(value).toPrecision(digits);
}
export const percent = (value) => !known(value) ? "" : value ? (100 * value).toPrecision(3) : "0";
export const p = (value) => !known(value) ? "" : value >= 0.01 ? value.toFixed(2) : value === 0 ? "0" : Number(value).toPrecision(1);
export function size(value) {
  if (!known(value)) return "";
  for (const [unit, one] of [["T", 1e12], ["B", 1e9], ["M", 1e6], ["K", 1e3]]) {
    if (value >= one) return Number((value / one).toPrecision(3)) + unit;
  }
  return String(value);
}

// ---- colors: blue is less random than chance, orange more; the text is always written, too

export function heat(value) {
  if (!known(value)) return "transparent";
  const depth = Math.min(1, Math.abs(value - 0.5) / 0.4);  // means below 0.1 and above 0.9 are rare
  return `rgba(${value < 0.5 ? "0, 114, 178" : "213, 94, 0"}, ${(0.75 * depth).toFixed(2)})`;
}

export function strip(entry) {
  const roles = Object.entries(entry.heat || {}).filter(([, cells]) => /\d/.test(cells));
  const cells = [];
  roles.forEach(([, text], row) => {
    for (let decile = 0; decile < 10; decile++) {
      const digits = text.slice(2 * decile, 2 * decile + 2);
      if (digits !== "--") cells.push(`<rect x="${decile * 9}" y="${row * 5}" width="9" height="5" fill="${heat(Number(digits) / 100)}"/>`);
    }
  });
  const lowest = roles.map(([role, text]) => `${role} ${text.slice(0, 2) === "--" ? "unknown" : "0." + text.slice(0, 2)}`);
  const label = `mean p of the smallest tenth: ${lowest.join(", ")}`;
  return `<svg class="strip" role="img" width="90" height="${Math.max(5, roles.length * 5)}" viewBox="0 0 90 ${Math.max(5, roles.length * 5)}" `
    + `aria-label="${esc(label)}"><title>${esc(label)}</title>${cells.join("")}</svg>`;
}

// ---- files

export function fail(error) {
  const place = byId("message");
  place.hidden = false;
  place.textContent = error.message || String(error);
}

async function answer(path, options) {
  if (location.protocol === "file:") {
    throw new Error("A browser does not read the data of a page that was opened as a file. Serve the folder instead: rmtscan serve STORE, or python -m http.server.");
  }
  let response;
  try {
    response = await fetch(`${root}/${path}`, options);
  } catch (error) {
    throw new Error(`${path} could not be fetched (${error.message}): is the server still running? Reload the page to try again.`);
  }
  if (!response.ok) throw new Error(`${path} could not be fetched: the server says ${response.status}. The site may have been written again; go back to the models.`);
  return response;
}

const fetched = new Map();
export function json(path) {
  if (!fetched.has(path)) {
    const promise = answer(path, { cache: "no-cache" }).then((response) => response.json());
    promise.catch(() => fetched.delete(path));
    fetched.set(path, promise);
  }
  return fetched.get(path);
}

// The bytes [from, from + length) of a file. A host without byte ranges sends the whole file: then they are cut out of it.
export async function bytes(path, from, length) {
  const response = await answer(path, { headers: { Range: `bytes=${from}-${from + length - 1}` } });
  const content = await response.arrayBuffer();
  const part = response.status === 206 ? content : content.slice(from, from + length);
  if (part.byteLength !== length) throw new Error(`${path} is shorter than its index says: write the site again.`);
  return part;
}

export function floats(buffer, from, count) {
  const view = new DataView(buffer, from, 4 * count);
  return Float64Array.from({ length: count }, (_, i) => view.getFloat32(4 * i, true));
}

// ---- state in the URL

export const state = () => new URLSearchParams(location.search);
export function setState(changes, { push = true } = {}) {
  const next = state();
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === undefined || value === "") next.delete(name); else next.set(name, value);
  }
  const text = next.toString();
  if (text === state().toString()) return;
  history[push ? "pushState" : "replaceState"](null, "", text ? `?${text}` : location.pathname);
}
export const onBack = (show) => window.addEventListener("popstate", show);

export const modelPage = (key) => `${root}/models/${encodeURIComponent(key)}/index.html`;
export function matrixPage(key, matrix) {  // what is not known of a slice of a head is left out
  const values = { model: key };
  for (const name of ["tensor", "role", "module", "stack", "layer", "head", "expert"]) {
    if (known(matrix[name]) && (["tensor", "role", "expert"].includes(name) || known(matrix.head))) values[name] = matrix[name];
  }
  return `${root}/matrix.html?${new URLSearchParams(values)}`;
}

// ---- the matrices of a model

export async function matricesOf(key, file = "matrices.json") {
  const found = await json(`models/${encodeURIComponent(key)}/${file}`);
  const names = Object.keys(found.columns);
  const matrices = found.columns.offset.map((_, i) => {
    const one = {};
    for (const name of names) {
      const value = found.columns[name][i];
      one[name] = name in found.words && value !== null ? found.words[name][value] : value;
    }
    return one;
  });
  return { ...found, matrices };
}
export const roleName = (matrix) => matrix.role + (matrix.module ? ` (${matrix.module.replaceAll("_", " ")})` : "");
export const placeName = (matrix) => (matrix.stack ? matrix.stack + " " : "")
  + (known(matrix.layer) ? `layer ${matrix.layer}` : matrix.tensor) + (known(matrix.expert) ? `, expert ${matrix.expert}` : "");
export const headName = (matrix) => known(matrix.head) ? `, head ${matrix.head}` : "";

// ---- tables

const MOST_PRINTED = 1000;  // rows of a table that are printed at once
const bundle = () => import("./dt_bundle.js");
// columns: { title, value(row), html(row)?, class?, help?, search? }. `html` returns markup whose texts are escaped.
export async function table(place, columns, rows, { order = [], search = "", length = 50, total = rows.length, caption = "", empty = "Nothing matches." } = {}) {
  const { jQuery } = await bundle();
  place.replaceChildren();
  if (caption) place.append(el("caption", { class: "hidden" }, caption));
  const made = jQuery(place).DataTable({
    data: rows,
    columns: columns.map((column) => ({
      title: esc(column.title),
      className: column.class || "",
      orderable: column.order !== false,
      searchable: column.search !== false,
      orderSequence: ["asc", "desc"],
      data: null,
      render: (_, kind, row) => {
        const value = column.value(row);
        if (kind === "display") return column.html ? column.html(row) : esc(value);
        return kind === "filter" && column.text ? column.text(row) : value ?? "";
      },
    })),
    order,
    search: { search },
    pageLength: length,
    paging: total > length,
    lengthChange: false,
    deferRender: true,
    autoWidth: false,
    layout: { topStart: "search", topEnd: null, bottomStart: "info", bottomEnd: "paging" },
    language: { search: "Search", searchPlaceholder: "", emptyTable: empty, zeroRecords: empty, info: "_START_ to _END_ of _TOTAL_", infoFiltered: "(of _MAX_)", infoEmpty: "none" },
  });
  place.dataset.drawn = "yes";
  if (total > length && total <= MOST_PRINTED) {
    window.addEventListener("beforeprint", () => made.page.len(-1).draw(false));
    window.addEventListener("afterprint", () => made.page.len(length).draw(false));
  }
  return made;
}

// ---- charts, loaded when the first one is drawn

let library;
function script(path) {
  return new Promise((done, failed) => {
    const made = el("script", { src: `${root}/assets/${path}` });
    made.addEventListener("load", done);
    made.addEventListener("error", () => failed(new Error(`${path} could not be loaded: reload the page to try again.`)));
    document.head.append(made);
  });
}
export async function charts() {
  library ??= script("vega.js").then(() => script("charts.js")).then(() => {
    const found = window.rmtCharts;
    document.addEventListener("themechange", () => found.redraw());
    return found;
  });
  return library;
}

// ---- texts to copy, and files to keep

export function copyable(text, label) {
  const button = el("button", { type: "button", class: "copy", "aria-label": `Copy ${label}` }, "Copy");
  button.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; } catch { button.textContent = "Select and copy"; }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return el("div", { class: "snippet" }, el("pre", { tabindex: "0", role: "region", "aria-label": label }, el("code", {}, text)), button);
}
export function save(name, kind, text) {
  const url = URL.createObjectURL(new Blob([text], { type: kind }));
  const link = el("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
export const inShell = (text) => /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`;

// ---- news of a served site

if (document.documentElement.dataset.live === "yes") {
  let first = null;
  const ask = async () => {
    try {
      const found = (await (await fetch(`${root}/index.json`, { cache: "no-cache" })).json()).state;
      first ??= found;
      if (found !== first) byId("news").hidden = false;
    } catch { /* the server has ended, or is writing */ }
  };
  ask();
  setInterval(ask, 5000);
}
window.addEventListener("unhandledrejection", (event) => fail(event.reason));
