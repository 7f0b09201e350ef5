"use strict";
// Draws the charts, the explorer of matrices, and sortable tables. Data is inserted as text, never as markup.
(() => {
  const data = (id) => { const found = document.getElementById(id); return found ? JSON.parse(found.textContent) : null; };
  const { draw, short, spectrum, randomness } = rmtCharts;

  // ---- figures: drawn when they come near the viewport, and all of them before the page is printed
  const charts = data("charts") || {};
  const waiting = new Map();
  for (const place of document.querySelectorAll("[data-chart]")) waiting.set(place, charts[place.dataset.chart]);
  const now = (place) => {
    const specification = waiting.get(place);
    waiting.delete(place);
    return specification ? draw(place, specification, place.dataset.label) : Promise.resolve();
  };
  if ("IntersectionObserver" in window) {
    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) { watcher.unobserve(entry.target); now(entry.target); }
    }, { rootMargin: "800px" });
    for (const place of [...waiting.keys()]) watcher.observe(place);
  } else {
    for (const place of [...waiting.keys()]) now(place);
  }
  // Paper has nothing to click: what is folded is printed, too.
  const folded = document.querySelectorAll(".said details:not([open])");
  window.addEventListener("beforeprint", () => { for (const one of folded) one.open = true; });
  window.addEventListener("afterprint", () => { for (const one of folded) one.open = false; });
  window.addEventListener("beforeprint", () => { for (const place of [...waiting.keys()]) now(place); });

  document.addEventListener("themechange", () => rmtCharts.redraw());

  // ---- filter: what does not contain every word is hidden
  const filter = document.getElementById("filter");
  filter.closest("p").hidden = false;
  const parts = [...document.querySelectorAll("[data-filter]")];
  const texts = new Map();
  const sift = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const part of parts) {
      if (words.length && !texts.has(part)) texts.set(part, part.textContent.toLowerCase());
      part.hidden = words.length > 0 && !words.every((word) => texts.get(part).includes(word));
      count += !part.hidden;
    }
    document.getElementById("filter-count").textContent = words.length ? `${count.toLocaleString("en")} of ${parts.length.toLocaleString("en")} match` : "";
  };
  filter.addEventListener("input", sift);
  // A link into what is hidden shows everything again.
  const aim = () => {
    const target = location.hash.length > 1 ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
    if (target && target.hidden) { filter.value = ""; sift(); target.scrollIntoView(); }
  };
  window.addEventListener("hashchange", aim);

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
  const model = () => explorer.models[selects.model.selectedIndex];
  const ofRole = (role) => model().matrices.filter((matrix) => matrix.role === role);

  const fill = (select, names, wanted) => {
    select.replaceChildren(...names.map((name) => { const option = document.createElement("option"); option.textContent = name; option.value = name; return option; }));
    if (names.includes(wanted)) select.value = wanted;
  };
  const octets = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const thousandths = (text) => Array.from(octets(text), (value) => value === 255 ? null : 4 * value);
  const opened = (packed) => {  // values as the charts need them
    const pairs = octets(packed.s), { scale } = packed;
    return { ...packed, k: model().ranks[packed.count], u: thousandths(packed.u), v: thousandths(packed.v),
      s: Array.from({ length: pairs.length / 2 }, (_, i) => (pairs[2 * i] + 256 * pairs[2 * i + 1]) / 65535 * packed.most),
      scale: scale && { ...scale, u: thousandths(scale.u), v: thousandths(scale.v),
        density: thousandths(scale.density).map((value) => value === null ? null : value / 1000 * scale.most) } };
  };
  const controls = () => Object.fromEntries(Object.entries(model().controls).map(([shape, one]) => [shape, { u: thousandths(one.u), v: thousandths(one.v) }]));

  let turn = 0;
  async function show() {
    const mine = ++turn;
    const found = ofRole(selects.role.value);
    const packed = found[selects.place.selectedIndex] || found[0];
    if (!packed) return;
    const matrix = opened(packed);
    byId("choose-before").disabled = selects.place.selectedIndex <= 0;
    byId("choose-next").disabled = selects.place.selectedIndex >= found.length - 1;
    byId("explorer-facts").textContent = [
      matrix.tensor, matrix.rows + " × " + matrix.cols, "σ = " + short(matrix.sigma) + (matrix.kind ? " (" + matrix.kind + ")" : ""),
      matrix.left + " singular values below the bulk, " + matrix.right + " above" + (matrix.scale ? " (by the scale null " + matrix.scale.left + " and " + matrix.scale.right + ")" : ""),
      "mean p: left " + short(matrix.u_p) + ", right " + short(matrix.v_p),
    ].join(" · ");
    const places = [byId("explorer-spectrum"), byId("explorer-p")];
    if (matrix.histogram) await draw(places[0], spectrum(matrix), "Singular values of " + matrix.role + ", " + matrix.place);
    else places[0].textContent = "Half of the singular values of this matrix are zero, so it has no bulk to draw.";
    if (mine === turn) await draw(places[1], randomness(matrix, controls()), "Local mean of p along the rank of " + matrix.role + ", " + matrix.place);
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
  // `#explore/ID` shows a matrix here. `#ID` is its row in the table.
  const follow = () => {
    const text = decodeURIComponent(location.hash.slice(1)), id = text.replace(/^explore\//, "");
    explorer.models.forEach((one, number) => {
      const found = one.matrices.find((matrix) => matrix.id === id);
      if (!found) return;
      selects.model.selectedIndex = number;
      roles();
      selects.role.value = found.role;
      places();
      selects.place.selectedIndex = ofRole(found.role).indexOf(found);
      show();
      if (text !== id) byId("explore").scrollIntoView();
    });
  };
  window.addEventListener("hashchange", follow);
  const step = (by) => { selects.place.selectedIndex += by; show(); chosen(); };
  const chosen = () => {  // the address of what is shown
    const found = ofRole(selects.role.value)[selects.place.selectedIndex];
    try { if (found) history.replaceState(null, "", "#explore/" + found.id); } catch { /* a page without an address */ }
  };
  selects.model.addEventListener("change", () => { roles(); chosen(); });
  selects.role.addEventListener("change", () => { places(); chosen(); });
  selects.place.addEventListener("change", () => { show(); chosen(); });
  byId("choose-before").addEventListener("click", () => step(-1));
  byId("choose-next").addEventListener("click", () => step(1));
  fill(selects.model, explorer.models.map((one) => one.model));
  selects.model.closest("label").hidden = explorer.models.length < 2;
  roles();
  if (location.hash.length > 1) follow();
})();
