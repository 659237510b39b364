// Sorting and filtering of the batch's table; without it the page shows the slides as they came.
"use strict";

const table = document.getElementById("slides");
const form = document.querySelector(".filter");

const cell = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;

// Numbers by value, texts as people order them; what is missing goes last, either way.
function compare(a, b, rising) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const [x, y] = [Number(a), Number(b)];
  const order = Number.isNaN(x - y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  return rising ? order : -order;
}

function sortBy(head) {
  const number = head.classList.contains("number");
  const before = head.getAttribute("aria-sort");
  const rising = before ? before === "descending" : !number; // high numbers first
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const column = head.cellIndex;
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => compare(cell(a, column), cell(b, column), rising));
  table.tBodies[0].append(...rows);
}

function filter() {
  const text = document.getElementById("text").value.toLowerCase();
  const decision = document.getElementById("decision")?.value ?? "";
  const above = document.getElementById("above").checked;
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const named = row.querySelector("th").firstChild.textContent.toLowerCase().includes(text);
    const decided = !decision || row.dataset.decision === decision;
    row.hidden = !(named && decided && (!above || "above" in row.dataset));
    shown += !row.hidden;
  }
  const all = table.tBodies[0].rows.length;
  document.getElementById("count").textContent = `${shown} of ${all} slides`;
}

if (table) {
  for (const head of table.querySelectorAll("th[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(head));
    head.append(button);
  }
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();
}
