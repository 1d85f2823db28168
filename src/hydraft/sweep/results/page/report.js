"use strict";
// Everything from a run is inserted by textContent: nothing in a config or an error is read as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const { make, copy, command, drawn, section } = Charts;

// ---- jobs ---------------------------------------------------------------------------------------------------------

function openJob(name) {
  const job = data.jobs[name];
  const dialog = document.getElementById("job");
  const config = { ...data.common, ...job.config };
  const lines = make("pre", { class: "config" });
  for (const key of Object.keys(job.config).sort()) lines.append(make("mark", {}, `${key}: ${config[key]}`), "\n"); // what differs
  for (const key of Object.keys(data.common).sort()) lines.append(`${key}: ${config[key]}\n`);
  dialog.replaceChildren(
    make("div", { class: "top" }, make("h3", {}, name), make("button", { type: "button", onclick: () => dialog.close() }, "Close")),
    make("dl", {}, ...job.facts.flatMap(([key, value]) => [make("dt", {}, key), make("dd", {}, value)])),
    command(job.command),
    Object.keys(config).length ? lines : make("p", { class: "note" }, "It never started, so no config was saved."),
  );
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

const MOST = 500; // rows of the table: a browser draws that many without delay

function jobs() {
  let sorted = -1;
  let down = false;
  const body = make("tbody");
  const find = make("input", { type: "search", placeholder: `find a ${data.noun}`, "aria-label": `find a ${data.noun}`, oninput: () => fill() });
  const count = make("span", { class: "muted" });
  const heads = data.columns.map((column, index) => make("th", { class: column.word ? "word" : null, scope: "col" },
    make("button", { type: "button", onclick: () => { down = sorted === index && !down; sorted = index; fill(); } }, column.label)));
  const rank = (value) => value === null || value === "" ? 1 : 0;
  function fill() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let rows = data.rows.filter((row) => words.every((word) => row.text.toLowerCase().includes(word)));
    if (sorted >= 0) rows = [...rows].sort((a, b) => {
      const [x, y] = [a.cells[sorted][0], b.cells[sorted][0]];
      if (rank(x) || rank(y)) return rank(x) - rank(y);
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return down ? -order : order;
    });
    heads.forEach((head, index) => {
      if (index === sorted) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    count.textContent = (rows.length === data.rows.length ? `${rows.length} ${data.noun}s` : `${rows.length} of ${data.rows.length} ${data.noun}s`)
      + (rows.length > MOST ? `, the first ${MOST} are shown` : "");
    body.replaceChildren(...rows.slice(0, MOST).map((row) => make("tr", {
      class: row.best ? "best" : null, tabindex: 0, "data-job": row.name,
      onclick: () => openJob(row.name),
      onkeydown: (event) => { if (event.key === "Enter") openJob(row.name); },
    }, ...row.cells.map(([, shown], index) => {
      const column = data.columns[index];
      const state = column.key === "state" ? ` state-${shown}` : "";
      return make("td", { class: `${column.word ? "word" : ""}${state}`.trim() || null, title: column.word ? shown : null }, shown);
    }))));
  }
  fill();
  main.append(make("h2", {}, data.noun === "job" ? "Jobs" : "Points"),
    make("p", { class: "note" }, `Click a ${data.noun} to see its config, or a column to sort by it.`),
    make("div", { class: "bar" }, find, count),
    make("div", { class: "panel jobs", id: "jobs" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body)));
}

function failures() {
  if (!data.failures.length) return;
  main.append(make("h2", {}, "Jobs that did not complete"), ...data.failures.map((failure) => make("div", { class: "panel failure" },
    make("pre", {}, failure.cause), make("p", { class: "note" }, failure.note),
    make("div", { class: "chips" }, ...failure.jobs.slice(0, MOST).map((name) => make("button", { type: "button", onclick: () => openJob(name) }, name)),
      failure.jobs.length > MOST ? make("span", { class: "muted" }, `and ${failure.jobs.length - MOST} more`) : ""))));
}

function answers() { // of the best job, before and after training
  if (!data.answers.length) return;
  const cell = (text) => make("td", { class: "text" }, text);
  const marked = ([text, right]) => make("td", { class: `text ${right ? "state-done" : "state-failed"}` }, `${right ? "✓" : "✗"} ${text}`);
  const head = ["question", "reference", "before training", "after training"].map((name) => make("th", { class: "word", scope: "col" }, name));
  const rows = data.answers.map((one) => make("tr", {}, cell(one.prompt), cell(one.reference), ...one.answers.map(marked)));
  main.append(make("h2", {}, "Answers of the best"),
    make("div", { class: "panel jobs", id: "answers" }, make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows))));
}

// ---- the page -----------------------------------------------------------------------------------------------------

const main = document.getElementById("main");

async function loadPlotly() { // it is in the page gzipped, as base64
  const packed = document.getElementById("plotly").textContent.trim();
  if (!packed) return;
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const text = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(make("script", {}, text));
}

async function begin() {
  document.getElementById("head").append(make("h1", {}, data.title), make("p", { class: "muted" }, data.subtitle),
    data.command ? make("p", { class: "muted mono" }, data.command) : "",
    make("div", { class: "tiles" }, ...data.tiles.map(([label, value, note]) => make("div", { class: "panel tile" },
      make("span", {}, label), make("b", {}, value), make("span", {}, note)))));
  if (data.best) {
    main.append(make("div", { class: "panel", id: "best" }, make("h3", {}, data.best.title), make("p", { class: "note" }, data.best.note),
      command(data.best.command),
      ...data.best.uses.flatMap((use) => [make("p", { class: "note" }, use.note), command(use.command)])));
  }
  if (data.findings.length) {
    main.append(make("div", { class: "panel", id: "findings" }, make("h3", {}, "What can be told apart"),
      ...data.findings.map((finding, index) => make("p", { class: index ? "note" : null }, finding))));
  }
  if (data.note) main.append(make("p", { class: "note", id: "nothing" }, data.note));
  try {
    if (data.sections.length) await loadPlotly();
    data.sections.forEach((part) => section(part, main, openJob));
  } catch (error) { // an old browser: the table is still shown
    main.append(make("p", { class: "note" }, `The charts cannot be drawn here: ${error}`));
    console.error(error);
  }
  answers();
  failures();
  if (data.rows.length) jobs();
  document.getElementById("job").addEventListener("click", (event) => { if (event.target.id === "job") event.target.close(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((one) => one.show()));
  document.documentElement.dataset.ready = "true";
}

begin();
