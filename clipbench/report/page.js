"use strict";
function number(text) {
  const found = text.replace(/,/g, "").match(/[-+]?\d*\.?\d+(e[-+]?\d+)?/i);
  return found ? parseFloat(found[0]) : NaN;
}
for (const table of document.querySelectorAll("table.data")) {
  if (table.tBodies[0].rows.length < 2) continue;
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      head.parentNode.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const of = (row) => row.cells[column].textContent.trim();
      const rows = [...table.tBodies[0].rows];
      const full = rows.map(of).filter((text) => text && text !== "-");
      const numeric = full.length > 0 && full.every((text) => /^[-+]?[\d.]/.test(text));
      rows.sort((a, b) => {
        const [one, other] = [of(a), of(b)];
        const order = numeric ? (number(one) || 0) - (number(other) || 0) : one.localeCompare(other, "en", { numeric: true });
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
for (const figure of document.querySelectorAll("figure.grid")) {
  const said = figure.querySelector(".said");
  const rows = [...figure.querySelectorAll("tbody tr")].map((row) => [...row.querySelectorAll("td")]);
  const all = rows.flat();
  if (!all.length) continue;
  all.forEach((cell) => { cell.tabIndex = -1; });
  all[0].tabIndex = 0;
  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  figure.addEventListener("focusin", (event) => {
    const cell = event.target.closest("td");
    if (!cell || !all.includes(cell)) return;
    all.forEach((other) => { other.tabIndex = -1; });
    cell.tabIndex = 0;
    said.textContent = cell.title;
  });
  figure.addEventListener("mouseover", (event) => {
    const cell = event.target.closest("td");
    if (cell && cell.title) said.textContent = cell.title;
  });
  figure.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    const r = rows.findIndex((row) => row.includes(event.target));
    if (!step || r < 0) return;
    const next = (rows[r + step[0]] || [])[rows[r].indexOf(event.target) + step[1]];
    if (next) { event.preventDefault(); next.focus(); }
  });
}
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach((one) => { one.open = true; });
});
addEventListener("afterprint", () => { opened.forEach((one) => { one.open = false; }); });
