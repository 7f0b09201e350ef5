// Aggregates of a model by place, role and decile: reading them, and the measures that pages show.
import { el, heat, known } from "./common.js";

export const MEASURES = {
  p: { title: "mean p", kind: "p" },
  p_scale: { title: "mean p, scale null", kind: "p" },
  above: { title: "values above the bulk", kind: "count" },
  below: { title: "values below the bulk", kind: "count" },
  above_scale: { title: "values above the bulk of the scale null", kind: "count" },
  below_scale: { title: "values below the bulk of the scale null", kind: "count" },
  sigma: { title: "σ", kind: "count" },
};
export const SIDES = { both: "both sides", u: "left vectors (output)", v: "right vectors (input)" };

export function unpacked(map) {  // p by place, role, decile (1 to 10) and u, v, u_scale, v_scale
  const text = atob(map.deciles);
  const roles = map.roles.length;
  return (place, role, decile, part) => {
    const value = text.charCodeAt(((place * roles + role) * 10 + decile - 1) * 4 + part);
    return value === 255 || Number.isNaN(value) ? null : value / 250;
  };
}
export function meanOf(values) {
  const found = values.filter(known);
  return found.length ? found.reduce((a, b) => a + b, 0) / found.length : null;
}
export function valueOf(map, read, place, role, measure, side, decile) {
  if (MEASURES[measure].kind === "p" && (side !== "both" || decile)) {
    const shift = measure === "p_scale" ? 2 : 0;
    const parts = side === "u" ? [shift] : side === "v" ? [shift + 1] : [shift, shift + 1];
    const deciles = decile ? [decile] : [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    return meanOf(deciles.flatMap((one) => parts.map((part) => read(place, role, one, part))));
  }
  return map.means[measure][place][role];
}

// A table of colored numbers. rows: { name, cells: [null | { value, text, color, label, href, open? }] }; `open` replaces the link.
export function drawGrid(place, title, heads, rows) {
  place.replaceChildren(el("caption", {}, title),
    el("thead", {}, el("tr", {}, ...heads.map(([text, help]) => el("th", { scope: "col", title: help }, text)))),
    el("tbody", {}, ...rows.map(({ name, cells }) => el("tr", {}, el("th", { scope: "row" }, name), ...cells.map((cell) => {
      if (!cell) return el("td", {}, "");
      const link = el("a", { href: cell.href, "aria-label": `${cell.label}: ${cell.text || "unknown"}` }, cell.text || "–");
      if (cell.open) link.addEventListener("click", (event) => { event.preventDefault(); cell.open(); });
      return el("td", { style: `background:${cell.color}` }, link);
    })))));
}
export function shadeOf(kind, value, most) {
  return kind === "p" ? heat(value) : known(value) ? `rgba(0, 114, 178, ${(0.62 * value / most).toFixed(2)})` : "transparent";
}

export const placeOf = ([stack, layer]) => (stack ? stack + " " : "") + (known(layer) ? String(layer) : "outside blocks");
