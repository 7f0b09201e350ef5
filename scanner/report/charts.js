"use strict";
// Charts of single matrices, and colors of all charts in light and dark; shared by the report and the site.
window.rmtCharts = (() => {
  const BLUE = "#0072B2", SKY = "#56B4E9", VERMILION = "#D55E00", GRAY = "#8C8C8C";
  const SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json";  // names the version; nothing is fetched
  const options = { renderer: "svg", ast: true, actions: { export: true, source: false, compiled: false, editor: false } };

  const short = (number) => number === null || number === undefined ? "–" : Number(number.toPrecision(3)).toString();

  // ---- dark mode: figures are drawn for white paper, so their inks are exchanged
  const INKS = { "#000000": "#f2f4f7", black: "#f2f4f7", "#444444": "#b6c0cc", "#5a6675": "#aab4c0", "#d0d0d0": "#4a5562", "#eeeeee": "#2b343f",
    "#332288": "#9d8fe0", "#882255": "#d77fae", "#0072b2": "#4aa3dc", "#777777": "#a3abb5" };
  const dark = () => document.documentElement.classList.contains("dark");
  function recolored(value) {
    if (Array.isArray(value)) return value.map(recolored);
    if (value && typeof value === "object") {
      const copy = {};
      for (const [key, one] of Object.entries(value)) {
        copy[key] = key === "values" || key === "datasets" ? one : key === "stroke" && one === "white" ? "#161b22" : recolored(one);
      }
      return copy;
    }
    return typeof value === "string" ? INKS[value.toLowerCase()] || value : value;
  }
  // ---- data: Vega's parser of CSV makes code of the column names, which the content security policy forbids
  function table(text, parse) {
    const rows = [[]];
    const cells = /("(?:[^"]|"")*"|[^,\n]*)(,|\n|$)/g;
    for (let match = cells.exec(text); match; match = cells.exec(text)) {
      const [, cell, end] = match;
      rows[rows.length - 1].push(cell.startsWith('"') ? cell.slice(1, -1).replaceAll('""', '"') : cell);
      if (cells.lastIndex >= text.length) break;
      if (end === "\n") rows.push([]);
    }
    const [names, ...found] = rows;
    return found.map((row) => Object.fromEntries(names.map((name, i) =>
      [name, parse[name] === "number" ? (row[i] === "" || row[i] === undefined ? null : Number(row[i])) : row[i]])));
  }
  function withTables(specification) {
    const datasets = { ...specification.datasets };
    const walk = (value) => {
      if (Array.isArray(value)) return value.map(walk);
      if (!value || typeof value !== "object") return value;
      const copy = {};
      for (const [key, one] of Object.entries(value)) {
        if (key === "values" || key === "datasets") { copy[key] = one; continue; }
        if (key !== "data" || !one || !one.format || one.format.type !== "csv") { copy[key] = walk(one); continue; }
        const text = one.name === undefined ? one.values : datasets[one.name];
        const rows = typeof text === "string" ? table(text, one.format.parse || {}) : text;
        if (one.name === undefined) copy.data = { values: rows };
        else { datasets[one.name] = rows; copy.data = { name: one.name }; }
      }
      return copy;
    };
    const found = walk(specification);
    return specification.datasets ? { ...found, datasets } : found;
  }

  function themed(specification, width = 1000) {
    const plain = withTables(specification);
    const found = dark() ? recolored(plain) : plain;
    found.background = null;
    // Entries of a legend do not wrap by themselves.
    if (found.width === "container") found.config = { ...found.config, legend: { ...(found.config || {}).legend, columns: Math.max(1, Math.floor(width / 190)) } };
    if (!dark()) return found;
    const ink = INKS.black, config = found.config || {};
    const axis = { labelColor: ink, titleColor: ink, domainColor: "#7a8592", tickColor: "#7a8592", gridColor: "#2b343f" };
    const legend = { labelColor: ink, titleColor: ink };
    found.config = { ...config, axis: { ...config.axis, ...axis }, legend: { ...config.legend, ...legend },
      title: { ...config.title, color: ink, subtitleColor: INKS["#444444"] }, header: { ...config.header, ...legend },
      text: { color: ink, ...config.text }, view: { ...config.view, stroke: "#4a5562" } };
    return found;
  }

  const live = new Map();  // place -> { specification, result }
  async function draw(place, specification, label) {
    try {
      const before = live.get(place);
      if (before && before.result) before.result.finalize();
      live.set(place, { specification, label, result: null });
      const result = await vegaEmbed(place, themed(specification, place.clientWidth), options);
      live.set(place, { specification, label, result });
      for (const svg of place.querySelectorAll("svg")) {
        // A chart is one image with a label, not a thousand marks without names.
        for (const mark of svg.querySelectorAll("[role], [aria-label]")) for (const name of ["role", "aria-label", "aria-roledescription"]) mark.removeAttribute(name);
        svg.setAttribute("role", "img");
        svg.setAttribute("aria-label", label || "chart");
      }
      for (const summary of place.querySelectorAll("summary")) summary.setAttribute("aria-label", "Download this chart");
      place.dataset.drawn = "yes";
      return result;
    } catch (error) {
      place.classList.add("failed");
      place.textContent = "This chart could not be drawn: " + error.message;
      console.error(error);
      return null;
    }
  }
  const redraw = () => Promise.all([...live].filter(([place]) => place.isConnected).map(([place, one]) => draw(place, one.specification, one.label)));
  const svg = async (place) => live.get(place) && live.get(place).result ? live.get(place).result.view.toSVG() : null;

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
  const base = { $schema: SCHEMA, width: "container", height: 270, autosize: { type: "fit-x", contains: "padding" }, background: null, config };

  function spectrum(matrix) {
    const { start, width, counts, beyond, largest } = matrix.histogram;
    const total = matrix.count, main = matrix.law ? matrix.law.name : "Marchenko–Pastur law";
    const bars = counts.map((count, i) => ({ from: start + i * width, to: start + (i + 1) * width, count, density: count / total / width })).filter((bar) => bar.count);
    const edges = [{ nu: matrix.upper, edge: "ν₊, " + matrix.right + " above" }];
    if (matrix.lower > 0) edges.unshift({ nu: matrix.lower, edge: "ν₋, " + matrix.left + " below" });
    const x = { field: "from", type: "quantitative", title: "singular value ν", scale: { zero: false, nice: false }, axis: { grid: false, tickCount: 8 } };
    const laws = { "singular values": SKY, [main]: "#000000" };
    if (matrix.scale) {
      laws["law of the scale null"] = VERMILION;
      edges.push({ nu: matrix.scale.upper, edge: "scale null, " + matrix.scale.right + " above", law: "law of the scale null" });
      if (matrix.scale.lower > 0) edges.push({ nu: matrix.scale.lower, edge: "scale null, " + matrix.scale.left + " below", law: "law of the scale null" });
    }
    const color = (name) => ({ datum: name, scale: { domain: Object.keys(laws), range: Object.values(laws) } });
    const curve = (points, name) => ({ data: { values: points }, mark: { type: "line", strokeWidth: 2, clip: true },
      encoding: { x: { field: "nu", type: "quantitative" }, y: { field: "density", type: "quantitative" }, order: { field: "nu", type: "quantitative" }, color: color(name) } });
    const rules = (name) => ({ data: { values: edges.filter((edge) => (edge.law || main) === name) }, mark: { type: "rule", strokeDash: [4, 3], clip: true },
      encoding: { x: { field: "nu", type: "quantitative" }, color: color(name), tooltip: [{ field: "edge", title: "edge" }, { field: "nu", title: "ν", format: ".4g" }] } });
    return { ...base,
      title: beyond ? { text: beyond + (beyond === 1 ? " value" : " values") + " beyond the axis, up to " + short(largest), anchor: "end", fontWeight: "normal", fontSize: 12, color: "#5a6675" } : undefined,
      layer: [
        { data: { values: bars }, mark: { type: "rect", opacity: 0.85, stroke: "white", strokeWidth: 0.3, clip: true },
          params: [{ name: "zoom", select: { type: "interval", encodings: ["x"] }, bind: "scales" }],
          encoding: { x, x2: { field: "to" }, y: { field: "density", type: "quantitative", title: "density p(ν)", scale: { zero: true } }, y2: { datum: 0 }, color: color("singular values"),
            tooltip: [{ field: "count", title: "singular values" }, { field: "from", format: ".4g" }, { field: "to", format: ".4g" }] } },
        curve(matrix.law ? matrix.law.points : law(matrix), main),
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
          x: { field: "k", type: "quantitative", title: "rank k of the singular value (0 = largest)", scale: { nice: false, domain: [0, matrix.count - 1] }, axis: { grid: false, tickCount: 8 } },
          y: { field: "p", type: "quantitative", title: "local mean of p", scale: { domain: [0, 1] } },
          color: { field: "what", type: "nominal", scale: { domain: names.slice(0, shown), range: colors.slice(0, shown) } },
          ...(matrix.scale ? { strokeDash: { field: "against", type: "nominal", scale: { domain: ["independent entries", "scale null"], range: [[1, 0], [4, 3]] }, legend: { orient: "bottom", title: null, symbolType: "stroke", symbolSize: 300 } } } : {}),
        } },
      { data: { values: rows }, mark: { type: "point", size: 60, opacity: 0, filled: true },
        encoding: { x: { field: "k", type: "quantitative" }, y: { field: "p", type: "quantitative" }, color: { field: "what", type: "nominal" },
          tooltip: [{ field: "what", title: "vectors" }, { field: "against", title: "against" }, { field: "k", title: "rank k" }, { field: "p", title: "p", format: ".3f" }, { field: "s", title: "singular value", format: ".4g" }] } },
    ] };
  }

  return { BLUE, SKY, VERMILION, GRAY, SCHEMA, base, short, dark, themed, draw, redraw, svg, spectrum, randomness };
})();
