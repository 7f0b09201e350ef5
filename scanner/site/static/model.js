// The page of one model: the map of its layers and roles, and its matrices. The findings are in the page already.
import { drawGrid, MEASURES, placeOf, shadeOf, SIDES, unpacked, valueOf } from "./map.js";
import { byId, charts, el, esc, fail, heat, json, known, matricesOf, matrixPage, number, onBack, p, placeName, roleName, setState, state, table } from "./common.js";

const key = document.documentElement.dataset.model;
function drawMap(map, read) {
  const now = state();
  const measure = now.get("measure") in MEASURES ? now.get("measure") : "p";
  const side = now.get("side") in SIDES ? now.get("side") : "both";
  const decile = Math.min(10, Math.max(0, Number.parseInt(now.get("decile"), 10) || 0));
  byId("measure").value = measure;
  byId("side").value = side;
  byId("decile").value = decile || "";
  const isP = MEASURES[measure].kind === "p";
  byId("side").disabled = byId("decile").disabled = !isP;
  const values = map.places.map((_, place) => map.roles.map((_, role) => map.counts[place][role] ? valueOf(map, read, place, role, measure, side, decile) : null));
  const most = Math.max(...values.flat().filter(known), 1e-12);
  const title = MEASURES[measure].title + (isP ? `, ${SIDES[side]}` : "") + (isP && decile ? `, decile ${decile}` : "");
  const rows = map.places.map((one, place) => ({ name: placeOf(one), cells: map.roles.map((role, column) => {
    if (!map.counts[place][column]) return null;
    const value = values[place][column];
    return { text: isP ? p(value) : number(value), color: shadeOf(MEASURES[measure].kind, value, most), label: `${role}, ${known(one[1]) ? "layer " : ""}${placeOf(one)}`,
      href: `?${new URLSearchParams({ role, place: placeOf(one) })}#matrices`, open: () => open(one, role) };
  }) }));
  drawGrid(byId("map"), title, [["layer"], ...map.roles.map((role, i) => [role, map.shapes[i]])], rows);
  byId("map").dataset.drawn = `${measure} ${side} ${decile}`;
}

let matrices = null;
let open = () => {};

async function drawMatrices() {
  const found = await matricesOf(key);
  matrices = found.matrices;
  const heatCell = (value) => `<span class="cell" style="background:${heat(value)}">${p(value)}</span>`;
  const columns = [
    { title: "Matrix", class: "name", value: (one) => `${String(one.layer ?? 99999).padStart(6, "0")} ${roleName(one)}`, text: (one) => `${roleName(one)} ${placeName(one)} ${one.tensor}`,
      html: (one) => `<a href="${esc(matrixPage(key, one))}">${esc(roleName(one))}, ${esc(placeName(one))}</a><small>${esc(one.tensor)}</small>` },
    { title: "Shape", class: "n wide", search: false, value: (one) => one.rows * one.cols, html: (one) => `${one.rows} × ${one.cols}` },
    { title: "Mean p", class: "n", search: false, value: (one) => one.p, html: (one) => heatCell(one.p) },
    { title: "Scale null", class: "n", search: false, value: (one) => one.p_scale, html: (one) => heatCell(one.p_scale) },
    { title: "Above", class: "n", search: false, value: (one) => one.outliers_right, html: (one) => number(one.outliers_right) },
    { title: "Below", class: "n", search: false, value: (one) => one.outliers_left, html: (one) => number(one.outliers_left) },
    { title: "σ", class: "n wide", search: false, value: (one) => one.sigma, html: (one) => number(one.sigma) },
    { title: "Stable rank", class: "n wide", search: false, value: (one) => one.stable_rank, html: (one) => number(one.stable_rank) },
    { title: "Distance to MP", class: "n wide", search: false, value: (one) => one.mp_ks, html: (one) => number(one.mp_ks) },
  ];
  const chosen = () => {
    const now = state();
    return matrices.filter((one) => (!now.get("role") || roleName(one) === now.get("role")) && (!now.get("place") || placeOf([one.stack, one.layer]) === now.get("place")));
  };
  const made = await table(byId("matrices-table"), columns, chosen(), { order: [], search: state().get("q") || "", length: 25, total: matrices.length, caption: "Matrices of the model" });
  const show = () => {
    const now = state();
    const where = [now.get("role"), now.get("place") ? `layer ${now.get("place")}` : ""].filter(Boolean).join(", ");
    byId("only").hidden = !where;
    byId("only-text").textContent = `Only ${where}.`;
    made.clear().rows.add(chosen()).search(now.get("q") || "").draw();
  };
  made.on("search.dt", () => setState({ q: made.search() }, { push: false }));
  byId("only-clear").addEventListener("click", () => { setState({ role: null, place: null }); show(); });
  return show;
}

async function start() {
  const model = await json(`models/${encodeURIComponent(key)}/model.json`);
  const map = model.map;
  const read = unpacked(map);
  const fill = (id, options) => byId(id).append(...options.map(([value, text]) => el("option", { value }, text)));
  fill("measure", Object.entries(MEASURES).filter(([name]) => map.means[name].flat().some(known)).map(([name, one]) => [name, one.title]));
  fill("side", Object.entries(SIDES));
  fill("decile", [["", "all"], ...Array.from({ length: 10 }, (_, i) => [i + 1, i === 0 ? "1, smallest values" : i === 9 ? "10, largest values" : String(i + 1)])]);
  for (const id of ["measure", "side", "decile"]) {
    byId(id).addEventListener("change", () => { setState({ [id]: byId(id).value === { measure: "p", side: "both", decile: "" }[id] ? null : byId(id).value }); drawMap(map, read); });
  }
  drawMap(map, read);
  byId("map-controls").hidden = false;
  const show = await drawMatrices();
  open = (place, role) => {
    const found = matrices.filter((one) => roleName(one) === role && placeOf([one.stack, one.layer]) === placeOf(place));
    if (found.length === 1) { location.href = matrixPage(key, found[0]); return; }
    setState({ role, place: placeOf(place) });
    show();
    byId("matrices").scrollIntoView();
    byId("only-clear").focus({ preventScroll: true });
  };
  onBack(() => { drawMap(map, read); show(); });
  show();
  document.body.dataset.ready = "yes";
  if (byId("turned")) await drawTurned(model.pairs);
}

async function drawTurned(pairs) {
  const { base, draw, BLUE } = await charts();
  const values = pairs.flatMap((pair) => pair.turned.map((value, i) => ({ decile: i + 1, value, base: pair.base })).filter((one) => known(one.value)));
  if (!values.length) { byId("turned").remove(); return; }
  await draw(byId("turned"), { ...base, height: 200, data: { values }, mark: { type: "bar", color: BLUE }, encoding: {
    x: { field: "decile", type: "ordinal", title: "decile of the singular values, 1 = smallest", axis: { labelAngle: 0 } },
    y: { field: "value", type: "quantitative", title: "share that turned out of the decile", axis: { format: "~%" } },
    ...(pairs.length > 1 ? { xOffset: { field: "base" }, color: { field: "base", type: "nominal" } } : {}),
    tooltip: [{ field: "decile" }, { field: "value", format: ".3~%" }] } }, "Share of the singular vectors that turned out of their decile");
}

// ---- attention heads: their table is loaded when it is looked at

const BETWEEN = { rotary: "the rotation by position", norm: "the norm of queries and keys" };
function drawHeads(found) {
  const now = state();
  const names = found.roles.map(roleName);
  const chosen = Math.max(0, names.indexOf(now.get("head_role")));
  const role = found.roles[chosen];
  const measures = Object.keys(MEASURES).filter((name) => name in role.means);
  const measure = measures.includes(now.get("head_measure")) ? now.get("head_measure") : measures[0];
  byId("head-role").value = names[chosen];
  byId("head-measure").replaceChildren(...measures.map((name) => el("option", { value: name }, MEASURES[name].title)));
  byId("head-measure").value = measure;
  const { kind, title } = MEASURES[measure], values = role.means[measure];
  const most = Math.max(...values.flat().filter(known), 1e-12);
  const there = found.places.map((_, place) => place).filter((place) => values[place].some(known));
  const note = role.between ? `Without what the model does between queries and keys: ${role.between.split(/[ ,]+/).map((word) => BETWEEN[word] || word).join(", ")}.` : "";
  byId("heads-note").hidden = !note;
  byId("heads-note").textContent = note;
  const rows = there.map((place) => {
    const [stack, layer] = found.places[place];
    return { name: placeOf(found.places[place]), cells: role.heads.map((head, column) => {
      const value = values[place][column];
      return { text: kind === "p" ? p(value) : number(value), color: shadeOf(kind, value, most), label: `${names[chosen]}, ${known(layer) ? "layer " : ""}${placeOf(found.places[place])}, head ${head}`,
        href: matrixPage(key, { role: role.role, module: role.module, stack, layer, head }) };
    }) };
  });
  drawGrid(byId("heads-map"), `${names[chosen]} (${role.shape}): ${title}`, [["layer \\ head"], ...role.heads.map((head) => [String(head)])], rows);
  byId("heads-map").dataset.drawn = `${names[chosen]} ${measure}`;
}
async function startHeads() {
  const found = await json(`models/${encodeURIComponent(key)}/heads.json`);
  if (!found.roles.length) return;
  byId("head-role").append(...found.roles.map((role) => el("option", { value: roleName(role) }, roleName(role))));
  for (const [id, name] of [["head-role", "head_role"], ["head-measure", "head_measure"]]) {
    byId(id).addEventListener("change", () => { setState({ [name]: byId(id).value }); drawHeads(found); });
  }
  onBack(() => drawHeads(found));
  byId("heads-controls").hidden = false;
  drawHeads(found);
}

if (key && byId("map")) start().catch(fail);
if (key && byId("heads-map")) {
  const watcher = new IntersectionObserver((seen) => {
    if (!seen.some((one) => one.isIntersecting)) return;
    watcher.disconnect();
    startHeads().catch(fail);
  }, { rootMargin: "400px" });
  watcher.observe(byId("heads-map"));
}
