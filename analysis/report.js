// Conveniences: without them all of the page is there and readable.
"use strict";
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not(.words)")) part.open = true;
});
const valueOf = (row, column) => {
  const text = row.cells[column].textContent.trim().replaceAll("−", "-").replaceAll(",", "");
  const number = parseFloat(text.replace(/^[<>[]\s*/, "")); // of an interval its lower end
  return Number.isFinite(number) ? number : text;
};
const compare = (a, b) => {
  if (typeof a === typeof b) return a < b ? -1 : Number(a > b);
  return typeof a === "number" ? -1 : 1; // cells without a number come last
};
for (const table of document.querySelectorAll("table.rows")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  if (rows.length < 3) continue;
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const order = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => sign * compare(valueOf(a, column), valueOf(b, column)));
      body.append(...rows);
    });
  });
  if (rows.length < 15) continue;
  const label = document.createElement("label");
  label.className = "filter";
  label.textContent = "Only rows with";
  const input = document.createElement("input");
  input.type = "search";
  label.append(input);
  table.parentElement.before(label);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
