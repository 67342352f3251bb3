"use strict";
// The JSON block holds the slots of each row. The elements of a text are its slots in order, from data-start on.
const rows = JSON.parse(document.getElementById("rows").textContent);
const panel = document.getElementById("slot");
let chosen = null;

function slotOf(element) {
  const text = element.parentElement;
  return Number(text.dataset.start) + Number(element.dataset.at ?? [...text.children].indexOf(element));
}

function show(element) {
  const row = rows.rows[Number(element.closest("[data-row]").dataset.row)];
  const at = slotOf(element);
  const name = (id) => `${id} ${JSON.stringify(rows.token_texts[id] ?? "")}`;
  const facts = {
    slot: at, token: name(row.tokens[at]), target: name(row.targets[at]), weight: row.weights[at],
    position: row.position[at], segment: row.segment[at], branch: row.branch[at],
  };
  const list = document.createElement("dl");
  for (const [key, value] of Object.entries(facts)) {
    const item = document.createElement("div"), term = document.createElement("dt"), shown = document.createElement("dd");
    term.textContent = key;
    shown.textContent = String(value);
    item.append(term, shown);
    list.append(item);
  }
  panel.replaceChildren(list);
}

function choose(element) {
  chosen?.classList.remove("at");
  chosen = element;
  chosen.classList.add("at");
  show(chosen);
}

function open() {
  document.getElementById(location.hash.slice(1))?.closest("details")?.setAttribute("open", "");
}
addEventListener("hashchange", () => {
  open();
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
});
open();

document.addEventListener("click", (event) => {
  const element = event.target.closest(".text > i");
  if (element) choose(element);
});
document.addEventListener("mouseover", (event) => {
  const element = event.target.closest(".text > i");
  if (element) show(element);
  else if (chosen) show(chosen);
});
document.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step || !chosen) return;
  const all = [...document.querySelectorAll(".text > i")];
  const next = all[all.indexOf(chosen) + step];
  if (next) {
    choose(next);
    next.scrollIntoView({ block: "nearest" });
  }
  event.preventDefault();
});
