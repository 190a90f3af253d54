"use strict";

// Figures are written for a light page. On a dark one every colour keeps its hue and gets the lightness it needs:
// greys are turned over, so that white is the sheet and ink is light, and colours that would be too dark are raised.
const SHEET = 0.13;
function darkened(text) {
  const colour = /^#([0-9a-f]{6})$/i.exec(text);
  const parts = /^rgba?\(([^)]+)\)$/i.exec(text);
  let channels, alpha = 1;
  if (text === "white") channels = [255, 255, 255];
  else if (colour) channels = [0, 2, 4].map((at) => parseInt(colour[1].slice(at, at + 2), 16));
  else if (parts) [channels, alpha] = [parts[1].split(",").slice(0, 3).map(Number), Number(parts[1].split(",")[3] ?? 1)];
  else return text;
  const [r, g, b] = channels.map((value) => value / 255);
  const [low, high] = [Math.min(r, g, b), Math.max(r, g, b)];
  const light = (low + high) / 2, spread = high - low;
  const saturation = spread === 0 ? 0 : spread / (1 - Math.abs(2 * light - 1));
  const sixth = spread === 0 ? 0 : high === r ? ((g - b) / spread + 6) % 6 : high === g ? (b - r) / spread + 2 : (r - g) / spread + 4;
  const grey = saturation < 0.3, ground = light > 0.8 || light < 0.35;
  const wanted = !grey ? Math.max(light, 0.62) : ground ? SHEET + (1 - light) * (0.92 - SHEET) : light;
  return `hsla(${Math.round(sixth * 60)}, ${Math.round(100 * Math.min(saturation, grey ? 0.2 : 0.85))}%, ${Math.round(100 * wanted)}%, ${alpha})`;
}
function inTheme(value, dark) {
  if (!dark) return value;
  if (typeof value === "string") return darkened(value);
  if (Array.isArray(value)) return value.map((inner) => inTheme(inner, dark));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, inTheme(inner, dark)]));
}

const night = matchMedia("(prefers-color-scheme: dark)");
function draw(holder, dark) {
  const figure = JSON.parse(document.getElementById(holder.dataset.figure).textContent);
  if (holder.clientWidth < 480) {
    // On a phone the plot needs the width more than the axis titles do, and the legend needs more lines.
    figure.layout.margin = { ...figure.layout.margin, l: Math.min(figure.layout.margin.l, 54), r: 8 };
    figure.layout.font.size = 11;
  }
  figure.layout.hoverlabel = { ...figure.layout.hoverlabel, align: "left" };
  const [data, layout] = inTheme([figure.data, figure.layout], dark);
  if (dark) layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0, 0, 0, 0)"; // the sheet shows through
  Plotly.react(holder, data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
}
function drawAll(dark) {
  for (const holder of document.querySelectorAll("[data-figure]")) draw(holder, dark);
}
drawAll(night.matches);
night.addEventListener("change", () => drawAll(night.matches));
addEventListener("beforeprint", () => night.matches && drawAll(false)); // paper is light
addEventListener("afterprint", () => night.matches && drawAll(true));

function sortBy(table, column, button) {
  const header = button.parentElement;
  const rising = header.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const body = table.tBodies[0];
  const key = (row) => row.cells[column].dataset.value;
  const numeric = [...body.rows].every((row) => key(row) === "" || !Number.isNaN(Number(key(row))));
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // unknown values stay last in both directions
    const order = numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true });
    return rising ? order : -order;
  };
  body.append(...[...body.rows].sort(compare));
}
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = cell.querySelector("button");
    button.addEventListener("click", () => sortBy(table, column, button));
  });
}


const scrolling = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const hint = target.nextElementSibling;
    if (hint?.classList.contains("scrolls")) hint.hidden = target.scrollWidth <= target.clientWidth + 1;
  }
});
for (const table of document.querySelectorAll(".table")) scrolling.observe(table);

const version = document.body.dataset.version;
if (version) {
  const place = sessionStorage.getItem("kdnas-scroll");
  if (place !== null) window.scrollTo(0, Number(place));
  setInterval(async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch("/version", { cache: "no-store" });
      if (answer.ok && (await answer.json()).version !== version) {
        sessionStorage.setItem("kdnas-scroll", String(window.scrollY));
        location.reload();
      }
    } catch { /* the dashboard was stopped: the page stays as it is */ }
  }, 3000);
}
