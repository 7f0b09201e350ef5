// Two to six models side by side, or a base and its fine-tunes.
import { byId, charts, el, fail, heat, json, known, modelPage, number, onBack, p, percent, setState, size, state, strip } from "./common.js";
import { meanOf, unpacked } from "./map.js";

const MOST = 6;
const COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];
const DASHES = [[1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [1, 0], [4, 4]];
const PARTS = { p: [0, 1], p_scale: [2, 3] };

let index = { models: [] };
const keys = () => [...new Set((state().get("models") || "").split(",").filter((key) => index.models.some((one) => one.key === key)))].slice(0, MOST);
const entryOf = (key) => index.models.find((one) => one.key === key);
const choose = (next) => { setState({ models: next.join(",") }); show().catch(fail); };

// Names that differ at their end only are cut at the beginning, others in the middle; equal ones get numbers.
function names(entries) {
  const cut = entries.map(({ name }) => name.length <= 34 ? name : `${name.slice(0, 12)}…${name.slice(-20)}`);
  return cut.map((name, i) => cut.indexOf(name) === i ? name : `${name} (${i + 1})`);
}

function chips(found) {
  byId("chosen").replaceChildren(...found.map((key) => {
    const { name } = entryOf(key);
    const remove = el("button", { type: "button", "aria-label": `Remove ${name}` }, "×");
    remove.addEventListener("click", () => choose(found.filter((one) => one !== key)));
    return el("li", {}, el("a", { href: modelPage(key) }, name), remove);
  }));
  byId("add").disabled = found.length >= MOST;
  byId("add-hint").textContent = found.length >= MOST ? `At most ${MOST} models.` : "";
}

function facts(entries, models, short) {
  const rows = [
    ["Parameters", (one) => size(one.parameters)], ["Architecture", (one) => one.architecture || ""], ["Layers", (one) => number(one.layers)],
    ["Matrices", (one) => number(one.matrices)], ["Format", (one) => [one.format, one.dtype].filter(Boolean).join(", ")],
    ["Mean p", (one) => p(one.p)], ["Above the bulk, %", (one) => number(one.above)], ["Below the bulk, %", (one) => number(one.below)],
    ["Least random role", (one) => one.learned || ""], ["Scanned, UTC", (one) => one.finished || ""],
  ];
  const strips = el("tr", {}, el("th", { scope: "row" }, "Roles by decile"), ...entries.map((one) => {
    const cell = el("td", {});
    cell.innerHTML = strip(one);  // numbers and an escaped label
    return cell;
  }));
  byId("facts").replaceChildren(
    el("thead", {}, el("tr", {}, el("td", {}), ...entries.map((one, i) => el("th", { scope: "col" }, el("a", { href: modelPage(one.key) }, short[i]))))),
    el("tbody", {}, ...rows.map(([title, text]) => el("tr", {}, el("th", { scope: "row" }, title), ...entries.map((one) => el("td", {}, text(one))))), strips));
  byId("headlines").replaceChildren(...models.map((model, i) => el("div", {}, el("h3", {}, short[i]),
    el("ul", {}, ...model.findings.filter((one) => !one.warning).slice(0, 3).map((one) => el("li", {}, one.headline))))));
}

const rolesOf = (models) => [...new Set(models.flatMap((model) => model.map.roles))];

function byDecile(models, short, measure, side) {
  const values = [];
  models.forEach((model, i) => {
    const { map } = model, read = unpacked(map);
    map.roles.forEach((role, r) => {
      for (let decile = 1; decile <= 10; decile++) {
        const parts = side === "both" ? PARTS[measure] : [PARTS[measure][side === "u" ? 0 : 1]];
        const value = meanOf(map.places.flatMap((_, place) => parts.map((part) => read(place, r, decile, part))));
        if (known(value)) values.push({ model: short[i], role, x: decile, value });
      }
    });
  });
  return values;
}
function byDepth(models, short, measure, side) {
  const values = [];
  models.forEach((model, i) => {
    const { map } = model, read = unpacked(map);
    const layers = map.places.map(([, layer]) => layer);
    const deepest = Math.max(1, ...layers.filter(known));
    map.places.forEach(([stack, layer], place) => map.roles.forEach((role, r) => {
      if (!known(layer)) return;
      const parts = side === "both" ? PARTS[measure] : [PARTS[measure][side === "u" ? 0 : 1]];
      const value = meanOf([1, 2, 3, 4, 5, 6, 7, 8, 9, 10].flatMap((decile) => parts.map((part) => read(place, r, decile, part))));
      if (known(value)) values.push({ model: short[i], role, x: layer / deepest, value, layer, stack: stack || "" });
    }));
  });
  return values;
}

function small(base, values, short, x, title) {
  const wide = byId("by-decile").clientWidth || 900;
  const columns = Math.max(1, Math.min(4, Math.floor(wide / 250)));
  const roles = [...new Set(values.map((one) => one.role))];
  const scale = { domain: short, range: COLORS.slice(0, short.length) };
  return { $schema: base.$schema, config: { ...base.config, header: { labelFontSize: 12, title: null, labelFontWeight: "bold" }, legend: { ...base.config.legend, columns: wide < 600 ? 1 : 3, labelLimit: wide < 600 ? wide - 90 : wide / 3, symbolType: "stroke", symbolSize: 300 } },
    // With a shared axis, the last row would have axes without panels.
    resolve: { axis: { x: "independent" } },
    data: { values }, spacing: 16, facet: { field: "role", type: "nominal", title: null, sort: roles }, columns,
    spec: { width: Math.max(150, Math.floor((wide - 50) / columns) - 30), height: 130, layer: [
      { mark: { type: "rule", color: "#8C8C8C", strokeDash: [2, 2] }, encoding: { y: { datum: 0.5 } } },
      { mark: { type: "line", point: { size: 14 }, strokeWidth: 1.6 }, encoding: { x, y: { field: "value", type: "quantitative", title, scale: { domain: [0, Math.max(0.6, ...values.map((one) => one.value))] }, axis: { tickCount: 4 } },
        color: { field: "model", type: "nominal", scale, legend: { orient: "top", title: null } },
        strokeDash: { field: "model", type: "nominal", scale: { domain: short, range: DASHES.slice(0, short.length) } },
        detail: [{ field: "stack", type: "nominal" }],
        tooltip: [{ field: "model" }, { field: "role" }, { field: "x", format: ".3g" }, { field: "value", format: ".3f" }] } },
    ] } };
}

function roleTable(models, short, measure) {
  const roles = rolesOf(models);
  const of = (model, role, name) => {
    const at = model.map.roles.indexOf(role);
    return at < 0 ? null : meanOf(model.map.means[name].map((row) => row[at]));
  };
  byId("roles").replaceChildren(
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "role"), ...short.map((name) => el("th", { scope: "col", class: "n" }, name)))),
    el("tbody", {}, ...roles.map((role) => el("tr", {}, el("th", { scope: "row" }, role), ...models.map((model) => {
      const value = of(model, role, measure), above = of(model, role, "above"), below = of(model, role, "below");
      return el("td", { class: "n", style: `background:${heat(value)}` }, known(value) || known(above) ? `${p(value) || "–"} · ${known(below) ? below.toFixed(1) : "–"} | ${known(above) ? above.toFixed(1) : "–"}` : "");
    })))));
}

async function pairsIn(models) {
  const place = byId("pairs"), chosen = new Set(models.map((model) => model.key));
  const found = models.flatMap((model) => model.pairs.filter((pair) => chosen.has(pair.base_key)));
  byId("tuning").hidden = !found.length;
  place.replaceChildren();
  const turned = [];
  for (const pair of found) {
    const columns = [["matrices", (one) => number(one.matrices)], ["change, median, %", (one) => percent(one.change_median)], ["change, largest, %", (one) => percent(one.change_max)],
      ["below", (one) => one.below], ["above", (one) => one.above], ["intruders", (one) => number(one.intruders)], ["rank of the change", (one) => number(one.delta_rank)], ["p of the change", (one) => p(one.delta_p)]]
      .filter(([, text]) => pair.roles.some((one) => text(one)));  // what an earlier version did not store is left out
    const heads = ["role", ...columns.map(([title]) => title)];
    const rows = pair.roles.map((one) => el("tr", {}, el("th", { scope: "row" }, one.role), ...columns.map(([, text]) => el("td", { class: "n" }, text(one) ?? ""))));
    const exists = index.models.some((one) => one.key === pair.difference_key);
    place.append(el("h3", {}, `${pair.base} → ${pair.tuned}`),
      el("p", {}, `${pair.matrices} matrices compared, ${pair.identical} exactly unchanged, ${pair.unmatched} without a counterpart. `,
        exists ? el("a", { href: modelPage(pair.difference_key) }, "The difference ΔW as a model") : null),
      el("ul", {}, ...pair.findings.map((one) => el("li", {}, one.headline))),
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Changes by role, ${pair.tuned}` },
        el("table", {}, el("thead", {}, el("tr", {}, ...heads.map((head, i) => el("th", { scope: "col", class: i ? "n" : "" }, head)))), el("tbody", {}, ...rows))));
    pair.turned.forEach((value, i) => { if (known(value)) turned.push({ x: i + 1, value, pair: `${pair.base} → ${pair.tuned}` }); });
  }
  if (!turned.length) return;
  const chart = el("div", { class: "chart fluid", id: "turned" });
  place.append(el("h3", {}, "Where in the spectrum"), el("p", { class: "soft" }, "Share of the singular vectors of a decile that turned out of its subspace, mean over roles and both sides."), chart);
  const { base, draw } = await charts();
  await draw(chart, { ...base, height: 220, data: { values: turned }, mark: { type: "line", point: true }, encoding: {
    x: { field: "x", type: "ordinal", title: "decile of the singular values, 1 = smallest", axis: { labelAngle: 0 } },
    y: { field: "value", type: "quantitative", title: "share that turned", axis: { format: "~%" } }, color: { field: "pair", type: "nominal", scale: { range: COLORS }, legend: found.length < 2 ? null : { orient: "top", title: null, columns: 1, symbolType: "stroke", labelLimit: chart.clientWidth - 70 } },
    tooltip: [{ field: "pair" }, { field: "x", title: "decile" }, { field: "value", format: ".3~%" }] } }, "Share of the singular vectors that turned, by decile");
}

let turn = 0;
async function show() {
  const mine = ++turn;
  const found = keys();
  chips(found);
  const enough = found.length >= 2;
  byId("result").hidden = !enough;
  byId("nothing").hidden = enough;
  const measure = state().get("measure") === "p_scale" ? "p_scale" : "p";
  const side = ["u", "v"].includes(state().get("side")) ? state().get("side") : "both";
  byId("measure").value = measure;
  byId("side").value = side;
  document.body.dataset.ready = "";
  if (!enough) { document.body.dataset.ready = "yes"; return; }
  const models = await Promise.all(found.map((key) => json(`models/${encodeURIComponent(key)}/model.json`)));
  if (mine !== turn) return;
  const entries = found.map(entryOf), short = names(entries);
  facts(entries, models, short);
  roleTable(models, short, measure);
  const { base, draw } = await charts();
  const title = measure === "p" ? "mean p" : "mean p, scale null";
  const decile = byDecile(models, short, measure, side), depth = byDepth(models, short, measure, side);
  if (decile.length) await draw(byId("by-decile"), small(base, decile, short, { field: "x", type: "quantitative", title: null, scale: { domain: [1, 10] }, axis: { tickCount: 5, format: "d" } }, title), "Mean p by decile, one panel per role");
  else byId("by-decile").textContent = "The chosen models have no p-values of this kind.";
  if (depth.length) await draw(byId("by-depth"), small(base, depth, short, { field: "x", type: "quantitative", title: null, scale: { domain: [0, 1] }, axis: { tickCount: 3 } }, title), "Mean p by depth, one panel per role");
  else byId("by-depth").textContent = "The chosen models have no p-values by block.";
  await pairsIn(models);
  if (mine === turn) document.body.dataset.ready = "yes";
}

async function start() {
  index = await json("index.json");
  byId("known").append(...index.models.map((one) => el("option", { value: one.name })));
  byId("add-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = byId("add").value.trim();
    const match = index.models.filter((one) => one.name === text);
    const near = match.length ? match : index.models.filter((one) => one.name.toLowerCase().includes(text.toLowerCase()));
    if (!text || near.length !== 1) {
      byId("add-hint").textContent = !text ? "Type a part of a name." : near.length ? `${near.length} models match: type more of the name.` : "No model has this name.";
      return;
    }
    byId("add").value = "";
    choose([...keys(), near[0].key]);
  });
  const bases = index.models.filter((one) => one.tunes && one.tunes.length);
  byId("families").hidden = !bases.length;
  byId("bases").append(...bases.map((one) => el("option", { value: one.key }, `${one.name} and ${one.tunes.length} fine-tune${one.tunes.length > 1 ? "s" : ""}`)));
  byId("bases").addEventListener("change", () => {
    const one = entryOf(byId("bases").value);
    if (one) choose([one.key, ...one.tunes].slice(0, MOST));
    byId("bases").value = "";
  });
  for (const [id, usual] of [["measure", "p"], ["side", "both"]]) {
    byId(id).addEventListener("change", () => { setState({ [id]: byId(id).value === usual ? null : byId(id).value }); show().catch(fail); });
  }
  onBack(() => show().catch(fail));
  await show();
}
start().catch(fail);
