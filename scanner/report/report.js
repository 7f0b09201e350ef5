"use strict";
// Draws the charts, the explorer of matrices, and sortable tables. Data is inserted as text, never as markup.
(() => {
  const data = (id) => { const found = document.getElementById(id); return found ? JSON.parse(found.textContent) : null; };
  const options = { renderer: "svg", actions: { export: true, source: false, compiled: false, editor: false } };
  const BLUE = "#0072B2", SKY = "#56B4E9", VERMILION = "#D55E00", GRAY = "#8C8C8C";

  async function draw(place, specification) {
    try {
      await vegaEmbed(place, specification, options);
      place.dataset.drawn = "yes";
    } catch (error) {
      place.classList.add("failed");
      place.textContent = "This chart could not be drawn: " + error.message;
      console.error(error);
    }
  }

  // ---- figures: drawn when they come near the viewport, and all of them before the page is printed
  const charts = data("charts") || {};
  const waiting = new Map();
  for (const place of document.querySelectorAll("[data-chart]")) waiting.set(place, charts[place.dataset.chart]);
  const now = (place) => {
    const specification = waiting.get(place);
    waiting.delete(place);
    return specification ? draw(place, specification) : Promise.resolve();
  };
  if ("IntersectionObserver" in window) {
    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) { watcher.unobserve(entry.target); now(entry.target); }
    }, { rootMargin: "800px" });
    for (const place of [...waiting.keys()]) watcher.observe(place);
  } else {
    for (const place of [...waiting.keys()]) now(place);
  }
  window.addEventListener("beforeprint", () => { for (const place of [...waiting.keys()]) now(place); });

  // ---- tables
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.v !== undefined ? cell.dataset.v : cell.textContent.trim();
    return text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text;
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return 0;
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
        rows.sort((a, b) => (a[0] === "") - (b[0] === "") || (down ? -1 : 1) * compare(a[0], b[0]));  // empty cells stay last
        table.tBodies[0].append(...rows.map((pair) => pair[1]));
      });
    });
  }

  // ---- the explorer
  const explorer = data("explorer-data");
  if (!explorer) return;
  const byId = (id) => document.getElementById(id);
  const selects = { model: byId("choose-model"), role: byId("choose-role"), place: byId("choose-place") };
  const short = (number) => number === null || number === undefined ? "–" : Number(number.toPrecision(3)).toString();
  const model = () => explorer.models[selects.model.selectedIndex];
  const ofRole = (role) => model().matrices.filter((matrix) => matrix.role === role);

  const fill = (select, names, wanted) => {
    select.replaceChildren(...names.map((name) => { const option = document.createElement("option"); option.textContent = name; option.value = name; return option; }));
    if (names.includes(wanted)) select.value = wanted;
  };
  const law = (matrix) => {  // the Marchenko-Pastur density of singular values between its edges
    const lo = Math.min(matrix.rows, matrix.cols), hi = Math.max(matrix.rows, matrix.cols);
    const { lower, upper } = matrix, variance = matrix.sigma ** 2 * hi, points = [];
    for (let i = 0; i <= 120; i++) {
      const nu = Math.max((lower + upper) / 2 - (upper - lower) / 2 * Math.cos(Math.PI * i / 120), upper * 1e-4);
      const root = Math.max(0, (upper ** 2 - nu ** 2) * (nu ** 2 - lower ** 2));
      points.push({ nu, density: hi / lo / (Math.PI * variance * nu) * Math.sqrt(root) });
    }
    return points;
  };
  const scaleLaw = (matrix) => {  // the density of the scale null at the kept singular values; zero at its edges
    const { lower, upper, density } = matrix.scale;
    const points = matrix.s.map((nu, i) => ({ nu, density: density[i] })).filter((point) => point.density !== null && point.nu > lower && point.nu < upper);
    points.sort((a, b) => a.nu - b.nu);
    return [...(lower > 0 ? [{ nu: lower, density: 0 }] : []), ...points, { nu: upper, density: 0 }];
  };
  const config = {
    font: "Liberation Sans, Arial, Helvetica, sans-serif", view: { stroke: "#D0D0D0" },
    axis: { labelFontSize: 12, titleFontSize: 13, titleFontWeight: "normal", gridColor: "#EEEEEE", labelOverlap: true, labelFlush: false },
    legend: { orient: "top", title: null, labelFontSize: 12, symbolStrokeWidth: 2.5, labelLimit: 260, columnPadding: 14 },
  };
  const base = { $schema: explorer.schema, width: "container", height: 270, autosize: { type: "fit-x", contains: "padding" }, background: null, config };

  function spectrum(matrix) {
    const { start, width, counts, beyond, largest } = matrix.histogram;
    const total = Math.min(matrix.rows, matrix.cols);
    const bars = counts.map((count, i) => ({ from: start + i * width, to: start + (i + 1) * width, count, density: count / total / width })).filter((bar) => bar.count);
    const edges = [{ nu: matrix.upper, edge: "ν₊, " + matrix.right + " above" }];
    if (matrix.lower > 0) edges.unshift({ nu: matrix.lower, edge: "ν₋, " + matrix.left + " below" });
    const x = { field: "from", type: "quantitative", title: "singular value ν", scale: { zero: false, nice: false }, axis: { grid: false, tickCount: 8 } };
    const laws = { "singular values": SKY, "Marchenko–Pastur law": "#000000" };
    if (matrix.scale) {
      laws["law of the scale null"] = VERMILION;
      edges.push({ nu: matrix.scale.upper, edge: "scale null, " + matrix.scale.right + " above", law: "law of the scale null" });
      if (matrix.scale.lower > 0) edges.push({ nu: matrix.scale.lower, edge: "scale null, " + matrix.scale.left + " below", law: "law of the scale null" });
    }
    const color = (name) => ({ datum: name, scale: { domain: Object.keys(laws), range: Object.values(laws) } });
    const curve = (points, name) => ({ data: { values: points }, mark: { type: "line", strokeWidth: 2, clip: true },
      encoding: { x: { field: "nu", type: "quantitative" }, y: { field: "density", type: "quantitative" }, order: { field: "nu", type: "quantitative" }, color: color(name) } });
    const rules = (name) => ({ data: { values: edges.filter((edge) => (edge.law || "Marchenko–Pastur law") === name) }, mark: { type: "rule", strokeDash: [4, 3], clip: true },
      encoding: { x: { field: "nu", type: "quantitative" }, color: color(name), tooltip: [{ field: "edge", title: "edge" }, { field: "nu", title: "ν", format: ".4g" }] } });
    return { ...base,
      title: beyond ? { text: beyond + " values beyond the axis, up to " + short(largest), anchor: "end", fontWeight: "normal", fontSize: 12, color: "#5a6675" } : undefined,
      layer: [
        { data: { values: bars }, mark: { type: "rect", opacity: 0.85, stroke: "white", strokeWidth: 0.3, clip: true },
          params: [{ name: "zoom", select: { type: "interval", encodings: ["x"] }, bind: "scales" }],
          encoding: { x, x2: { field: "to" }, y: { field: "density", type: "quantitative", title: "density p(ν)", scale: { zero: true } }, y2: { datum: 0 }, color: color("singular values"),
            tooltip: [{ field: "count", title: "singular values" }, { field: "from", format: ".4g" }, { field: "to", format: ".4g" }] } },
        curve(law(matrix), "Marchenko–Pastur law"),
        ...(matrix.scale ? [curve(scaleLaw(matrix), "law of the scale null")] : []),
        ...Object.keys(laws).slice(1).map(rules),
      ] };
  }

  function randomness(matrix, controls) {
    const control = controls[matrix.rows + "x" + matrix.cols];
    const sides = { u: "left vectors (output)", v: "right vectors (input)" }, rows = [];
    for (const side of ["u", "v"]) {
      matrix.k.forEach((k, i) => {
        const p = matrix[side][i];
        if (p !== null) rows.push({ k, p: p / 1000, what: sides[side], against: "independent entries", s: matrix.s[i] });
        const scaled = matrix.scale ? matrix.scale[side][i] : null;
        if (scaled !== null) rows.push({ k, p: scaled / 1000, what: sides[side], against: "scale null", s: matrix.s[i] });
        if (control && control[side][i] !== null && side === "v") rows.push({ k, p: control[side][i] / 1000, what: "random control", against: "independent entries", s: null });
      });
    }
    const names = [sides.u, sides.v, "random control"], colors = [VERMILION, BLUE, GRAY];
    const shown = control ? 3 : 2;
    return { ...base, layer: [
      { data: { values: [{ low: 0.351, high: 0.649 }] }, mark: { type: "rect", color: "#000000", opacity: 0.05 },
        encoding: { y: { field: "low", type: "quantitative" }, y2: { field: "high" } } },
      { data: { values: [{ p: 0.5 }] }, mark: { type: "rule", color: GRAY, strokeDash: [2, 2] }, encoding: { y: { field: "p", type: "quantitative" } } },
      { data: { values: rows }, mark: { type: "line", strokeWidth: 1.8, clip: true },
        params: [{ name: "zoom", select: { type: "interval", encodings: ["x"] }, bind: "scales" }],
        encoding: {
          x: { field: "k", type: "quantitative", title: "rank k of the singular value (0 = largest)", scale: { nice: false, domain: [0, Math.min(matrix.rows, matrix.cols) - 1] }, axis: { grid: false, tickCount: 8 } },
          y: { field: "p", type: "quantitative", title: "local mean of p", scale: { domain: [0, 1] } },
          color: { field: "what", type: "nominal", scale: { domain: names.slice(0, shown), range: colors.slice(0, shown) } },
          ...(matrix.scale ? { strokeDash: { field: "against", type: "nominal", scale: { domain: ["independent entries", "scale null"], range: [[1, 0], [4, 3]] } } } : {}),
        } },
      { data: { values: rows }, mark: { type: "point", size: 60, opacity: 0, filled: true },
        encoding: { x: { field: "k", type: "quantitative" }, y: { field: "p", type: "quantitative" }, color: { field: "what", type: "nominal" },
          tooltip: [{ field: "what", title: "vectors" }, { field: "against", title: "against" }, { field: "k", title: "rank k" }, { field: "p", title: "p", format: ".3f" }, { field: "s", title: "singular value", format: ".4g" }] } },
    ] };
  }

  let turn = 0;
  async function show() {
    const mine = ++turn;
    const found = ofRole(selects.role.value);
    const matrix = found[selects.place.selectedIndex] || found[0];
    if (!matrix) return;
    byId("choose-before").disabled = selects.place.selectedIndex <= 0;
    byId("choose-next").disabled = selects.place.selectedIndex >= found.length - 1;
    byId("explorer-facts").textContent = [
      matrix.tensor, matrix.rows + " × " + matrix.cols, "σ = " + short(matrix.sigma) + (matrix.kind ? " (" + matrix.kind + ")" : ""),
      matrix.left + " singular values below the bulk, " + matrix.right + " above" + (matrix.scale ? " (by the scale null " + matrix.scale.left + " and " + matrix.scale.right + ")" : ""),
      "mean p: left " + short(matrix.u_p) + ", right " + short(matrix.v_p),
    ].join(" · ");
    const places = [byId("explorer-spectrum"), byId("explorer-p")];
    if (matrix.histogram) await draw(places[0], spectrum(matrix));
    else places[0].textContent = "Half of the singular values of this matrix are zero, so it has no bulk to draw.";
    if (mine === turn) await draw(places[1], randomness(matrix, model().controls));
    if (mine === turn) byId("explorer").dataset.shown = matrix.role + " / " + matrix.place;
  }
  function places() {
    fill(selects.place, ofRole(selects.role.value).map((matrix) => matrix.place), selects.place.value);
    return show();
  }
  function roles() {
    fill(selects.role, [...new Set(model().matrices.map((matrix) => matrix.role))], selects.role.value);
    return places();
  }
  const step = (by) => { selects.place.selectedIndex += by; show(); };
  selects.model.addEventListener("change", roles);
  selects.role.addEventListener("change", places);
  selects.place.addEventListener("change", show);
  byId("choose-before").addEventListener("click", () => step(-1));
  byId("choose-next").addEventListener("click", () => step(1));
  fill(selects.model, explorer.models.map((one) => one.model));
  selects.model.closest("label").hidden = explorer.models.length < 2;
  roles();
})();
