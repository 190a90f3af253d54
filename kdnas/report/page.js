"use strict";
for (const holder of document.querySelectorAll("[data-figure]")) {
  const figure = JSON.parse(document.getElementById(holder.dataset.figure).textContent);
  if (holder.clientWidth < 480) {
    // On a phone the plot needs the width more than the axis titles do, and the legend needs more lines.
    figure.layout.margin = { ...figure.layout.margin, l: Math.min(figure.layout.margin.l, 54), r: 8 };
    figure.layout.font.size = 11;
  }
  Plotly.newPlot(holder, figure.data, figure.layout, { responsive: true, displaylogo: false, displayModeBar: false });
}

function sortBy(table, column, button) {
  const header = button.parentElement;
  const rising = header.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const body = table.tBodies[0];
  const key = (row) => row.cells[column].dataset.value;
  const numeric = !header.classList.contains("text");
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // unknown values stay last in both directions
    const order = numeric ? Number(x) - Number(y) : x.localeCompare(y);
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
