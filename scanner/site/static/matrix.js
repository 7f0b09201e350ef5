// The page of one matrix: its spectrum with both laws, and p along the rank with the control. Its bytes are fetched by range.
import { byId, bytes, charts, copyable, el, fail, floats, headName, inShell, json, known, matricesOf, modelPage, number, onBack, p, placeName, roleName, save, setState, state } from "./common.js";

const BULK_BINS = 40, FEW_BINS = 12, MOST_BINS = 400, SHOWN = 2.5, POINTS = 600, WINDOW = 7;

let model = null, list = null, index = null, shown = null;

const NAMES = ["tensor", "role", "module", "stack", "layer", "head", "expert"];
const PRODUCTS = ["qk", "ov"];
const PLACE = ["module", "stack", "layer"];
const chosen = () => {
  const asked = NAMES.map((name) => [name, state().get(name)]).filter(([, value]) => value);
  if (!asked.length) return null;
  const found = list.matrices.filter((one) => asked.every(([name, value]) => String(one[name] ?? "") === value));
  // A link to a slice has what is known of its place: one outside of the blocks has no layer.
  return found.find((one) => known(one.head) && PLACE.every((name) => known(one[name]) === state().has(name))) || found[0] || null;
};
const isProduct = (one) => known(one.head) && PRODUCTS.includes(one.role);

// Mean over k-7 ... k+7; the window shrinks at both ends, and values that are unknown do not count.
export function local(values) {
  const sums = [0], counts = [0];
  values.forEach((value, i) => {
    sums.push(sums[i] + (Number.isNaN(value) ? 0 : value));
    counts.push(counts[i] + (Number.isNaN(value) ? 0 : 1));
  });
  return Array.from(values, (_, k) => {
    const from = Math.max(0, k - WINDOW), to = Math.min(values.length, k + WINDOW + 1);
    const count = counts[to] - counts[from];
    return count ? (sums[to] - sums[from]) / count : null;
  });
}
function thinned(count) {
  if (count <= POINTS) return Array.from({ length: count }, (_, k) => k);
  const ends = Math.floor(POINTS / 6), middle = POINTS - 2 * ends, step = (count - 2 * ends - 1) / (middle + 1);
  const inner = Array.from({ length: middle }, (_, i) => ends + Math.round(step * (i + 0.5)));
  return [...new Set([...Array.from({ length: ends }, (_, k) => k), ...inner, ...Array.from({ length: ends }, (_, k) => count - ends + k)])].sort((a, b) => a - b);
}
export function histogram(values, lower, upper) {  // bins that are aligned with both edges of the bulk
  if (!known(lower) || !known(upper) || !(upper > lower)) return null;
  const inner = Math.max(FEW_BINS, Math.min(BULK_BINS, Math.round(values.length / 4))), width = (upper - lower) / inner, largest = Math.max(...values), smallest = Math.min(...values);
  const below = Math.ceil(Math.max(lower - smallest, 0) / width), above = Math.ceil(Math.max(Math.min(largest, SHOWN * upper) - upper, 0) / width) + 1;
  const start = lower - below * width, bins = Math.min(MOST_BINS, below + inner + above), counts = new Array(bins).fill(0);
  let beyond = 0;
  for (const value of values) {
    const at = Math.max(0, Math.floor((value - start) / width));
    if (at < bins) counts[at]++; else beyond++;
  }
  return { start, width, counts, beyond, largest };
}
const thousandths = (values, kept) => kept.map((k) => known(values[k]) ? Math.round(1000 * values[k]) : null);

async function read(one) {
  const size = 4 * one.count;
  const content = await bytes(`models/${encodeURIComponent(model)}/${list.file}`, one.offset, size * list.order.length);
  return Object.fromEntries(list.order.map((name, i) => [name, floats(content, i * size, one.count)]));
}
async function controlOf(one, kept) {
  const file = list.controls[`${one.rows}x${one.cols}`];
  const count = Math.min(one.rows, one.cols);
  if (!file || count !== one.count) return {};  // a product of heads has fewer values
  const content = await bytes(file, 0, 8 * count);
  return { [`${one.rows}x${one.cols}`]: { u: thousandths(floats(content, 0, count), kept), v: thousandths(floats(content, 4 * count, count), kept) } };
}

// The law of a product of two random factors: its density is in the list, in units of sigma sqrt(rows cols / rank).
function lawOf(one) {
  if (!isProduct(one)) return undefined;
  const law = (list.laws || {})[`${one.rows}x${one.cols}x${one.count}`], unit = one.sigma * Math.sqrt(one.rows * one.cols / one.count);
  return { name: "law of random products", points: law && unit > 0 ? law[0].map((nu, i) => ({ nu: nu * unit, density: law[1][i] / unit })) : [] };
}

function facts(one) {
  const product = isProduct(one);
  const rows = [
    ["Tensor", one.tensor], ["Shape", `${one.rows} × ${one.cols}${one.dtype ? ", " + one.dtype : ""}`], ["σ", `${number(one.sigma)}${one.sigma_kind ? ` (${one.sigma_kind})` : ""}`],
    ["Bulk", known(one.mp_upper) ? `${number(one.mp_lower)} to ${number(one.mp_upper)}: ${number(one.outliers_left)} values below, ${number(one.outliers_right)} above` : "no edges"],
    ...(known(one.kv_head) ? [["Key-value head", String(one.kv_head)]] : []), ...(one.between ? [["Left out between queries and keys", one.between]] : []),
    ["Scale null", product ? "products have none" : known(one.scale_upper) ? `${number(one.scale_lower)} to ${number(one.scale_upper)}: ${number(one.outliers_left_scale)} below, ${number(one.outliers_right_scale)} above` : "none in this scan"],
    ["Mean p", known(one.p) ? `left ${p(one.u_p)}, right ${p(one.v_p)}${product ? "" : `; scale null ${p(one.p_scale) || "unknown"}`}` : "no p-values in this scan"],
    ["Norm and rank", `largest value ${number(one.spectral_norm)}, stable rank ${number(one.stable_rank)}, effective rank ${number(one.effective_rank)}`],
    [product ? "Distance to the law of random products" : "Distance to the Marchenko–Pastur law", number(one.mp_ks)],
  ];
  byId("facts").replaceChildren(...rows.flatMap(([term, text]) => [el("dt", {}, term), el("dd", {}, text)]));
}

function snippets(one) {
  const name = index.models.find((entry) => entry.key === model)?.name || model;
  const place = Object.entries({ tensor: one.tensor, role: one.role, layer: one.layer, head: one.head, expert: one.expert }).filter(([, value]) => known(value));
  const options = place.map(([key, value]) => `--${key} ${inShell(String(value))}`).join(" ");
  const literal = (text) => `'${text.replaceAll("'", "''")}'`;
  const where = [`model = ${literal(name)}`, `tensor = ${literal(one.tensor)}`, `role = ${literal(one.role)}`, known(one.head) ? `head = ${one.head}` : "head IS NULL", ...(known(one.expert) ? [`expert = ${one.expert}`] : [])].join(" AND ");
  const columns = "SELECT k, singular_value, region, u_p, v_p, u_p_scale, v_p_scale FROM vectors";
  const command = `rmtscan plot spectrum --model ${inShell(name)} ${options} --store ${inShell(index.store)} -o spectrum.svg\n\n`
    + `rmtscan sql ${inShell(`${columns} WHERE ${where} ORDER BY k`)} --store ${inShell(index.store)} --format csv`;
  const bound = [["model", name], ["tensor", one.tensor], ["role", one.role], ...["head", "expert"].filter((key) => known(one[key])).map((key) => [key, one[key]])];
  const code = `import scanner\n\nstore = scanner.open_store(${JSON.stringify(index.store)})\n`
    + `matrix = dict(${[["model", name], ...place].map(([key, value]) => `${key}=${JSON.stringify(value)}`).join(", ")})\n`
    + `chart = store.figure("spectrum", **matrix)  # an altair chart\n`
    + `vectors = store.sql(\n    "${columns}"\n    " WHERE ${[...bound.map(([key]) => `${key} = $${key}`), ...(known(one.head) ? [] : ["head IS NULL"])].join(" AND ")} ORDER BY k",\n`
    + `    {name: matrix[name] for name in (${bound.map(([key]) => `"${key}"`).join(", ")})},\n)  # an Arrow table`;
  byId("command").replaceChildren(copyable(command, "the commands"));
  byId("python").replaceChildren(copyable(code, "the Python snippet"));
}

function csv(one, columns) {
  const names = ["k", ...list.order];
  const lines = Array.from({ length: one.count }, (_, k) => [k, ...list.order.map((name) => Number.isNaN(columns[name][k]) ? "" : Number(columns[name][k].toPrecision(8)))].join(","));
  return `${names.join(",")}\n${lines.join("\n")}\n`;
}
const fileName = (one, what, suffix) => `${[one.role, known(one.layer) ? `layer${one.layer}` : "", known(one.head) ? `head${one.head}` : "", known(one.expert) ? `expert${one.expert}` : "", what].filter(Boolean).join("-").replace(/[^\w.-]+/g, "_")}.${suffix}`;

function choosers(one) {
  const roles = [...new Set(list.matrices.map(roleName))];
  const fill = (select, options, value) => {
    select.replaceChildren(...options.map(([id, text]) => el("option", { value: id }, text)));
    select.value = value;
  };
  const same = list.matrices.map((matrix, i) => [i, matrix]).filter(([, matrix]) => roleName(matrix) === roleName(one));
  fill(byId("role"), roles.map((role) => [role, role]), roleName(one));
  const heads = same.filter(([, matrix]) => placeName(matrix) === placeName(one)), places = new Map();
  for (const [i, matrix] of same) {  // one entry for the heads of a place: the chosen one, or the same of another place
    const before = places.get(placeName(matrix));
    if (!known(one.head) || before === undefined || matrix.head === one.head) places.set(known(one.head) ? placeName(matrix) : i, [String(i), placeName(matrix)]);
  }
  fill(byId("place"), [...places.values()], String(list.matrices.indexOf(one)));
  byId("head-label").hidden = !known(one.head);
  if (known(one.head)) fill(byId("head"), heads.map(([i, matrix]) => [String(i), String(matrix.head)]), String(list.matrices.indexOf(one)));
  const at = same.findIndex(([, matrix]) => matrix === one);
  byId("before").disabled = at <= 0;
  byId("next").disabled = at >= same.length - 1;
  shown = { one, same, at };
}
function go(one) {
  const slice = known(one.head);
  setState({ tensor: one.tensor, role: one.role, module: slice ? one.module : null, stack: slice ? one.stack : null, layer: slice ? one.layer : null, head: one.head, expert: one.expert });
  show().catch(fail);
}

let turn = 0;
async function show() {
  const mine = ++turn;
  const one = chosen();
  document.body.dataset.ready = "";
  if (!one) throw new Error("This model has no such matrix. It may have been scanned again under another name: choose one from the page of the model.");
  const entry = index.models.find((found) => found.key === model);
  const title = `${roleName(one)}, ${placeName(one)}${headName(one)}`, law = lawOf(one);
  document.title = `${title}: ${entry ? entry.name : model}`;
  byId("title").textContent = title;
  byId("model-link").textContent = entry ? entry.name : model;
  byId("model-link").href = modelPage(model);
  byId("view").hidden = false;
  for (const id of ["spectrum-text", "p-text"]) byId(id).hidden = Boolean(law);
  for (const id of ["product-text", "p-product-text"]) byId(id).hidden = !law;
  choosers(one);
  facts(one);
  snippets(one);
  const has = one.offset !== null;
  byId("downloads").hidden = !has;
  if (!has) {
    byId("spectrum").textContent = byId("randomness").textContent = "The store has no singular values of this matrix.";
    document.body.dataset.ready = "yes";
    return;
  }
  const [columns, { draw, spectrum, randomness, svg }] = await Promise.all([read(one), charts()]);
  if (mine !== turn) return;
  const kept = thinned(one.count);
  const scale = known(one.scale_upper) && columns.scale_density.some((value) => !Number.isNaN(value)) ? {
    lower: one.scale_lower, upper: one.scale_upper, left: one.outliers_left_scale, right: one.outliers_right_scale,
    density: kept.map((k) => Number.isNaN(columns.scale_density[k]) ? null : columns.scale_density[k]),
    u: thousandths(local(columns.u_p_scale), kept), v: thousandths(local(columns.v_p_scale), kept) } : undefined;
  const matrix = { rows: one.rows, cols: one.cols, count: one.count, law, sigma: one.sigma, lower: one.mp_lower, upper: one.mp_upper, left: one.outliers_left, right: one.outliers_right,
    histogram: histogram(columns.singular_value, one.mp_lower, one.mp_upper), k: kept, s: kept.map((k) => columns.singular_value[k]),
    u: thousandths(local(columns.u_p), kept), v: thousandths(local(columns.v_p), kept), scale };
  const controls = await controlOf(one, kept);
  if (mine !== turn) return;
  if (matrix.histogram) await draw(byId("spectrum"), spectrum(matrix), `Singular values of ${title} with the ${law ? law.name : "Marchenko–Pastur law"}${scale ? " and the law of the scale null" : ""}`);
  else byId("spectrum").textContent = "Half of the singular values of this matrix are zero, so it has no bulk to draw.";
  if ([...matrix.u, ...matrix.v].some(known)) await draw(byId("randomness"), randomness(matrix, controls), `Local mean of p along the rank, ${title}`);
  else byId("randomness").textContent = "This scan has no p-values of vectors.";
  byId("save-csv").onclick = () => save(fileName(one, "vectors", "csv"), "text/csv", csv(one, columns));
  for (const what of ["spectrum", "randomness"]) {
    byId(`save-${what}`).onclick = async () => { const text = await svg(byId(what)); if (text) save(fileName(one, what, "svg"), "image/svg+xml", text); };
  }
  if (mine === turn) document.body.dataset.ready = "yes";
}

async function start() {
  model = state().get("model");
  if (!model) throw new Error("No matrix is named: choose one from the page of a model.");
  [index, list] = await Promise.all([json("index.json"), matricesOf(model, state().get("head") ? "slices.json" : "matrices.json")]);
  byId("role").addEventListener("change", () => {
    const found = list.matrices.filter((one) => roleName(one) === byId("role").value);
    const near = found.filter((one) => one.layer === shown.one.layer && one.stack === shown.one.stack);
    go(near.find((one) => one.head === shown.one.head) || near[0] || found[0]);
  });
  byId("head").addEventListener("change", () => go(list.matrices[Number(byId("head").value)]));
  byId("place").addEventListener("change", () => go(list.matrices[Number(byId("place").value)]));
  byId("before").addEventListener("click", () => go(shown.same[shown.at - 1][1]));
  byId("next").addEventListener("click", () => go(shown.same[shown.at + 1][1]));
  onBack(() => show().catch(fail));
  await show();
}
start().catch(fail);
