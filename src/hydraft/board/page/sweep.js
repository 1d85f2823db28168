// The page of a sweep: what its report.html shows, from its files as they are now.
import { addView, api, board, fillActions, go, make, seconds, setChosen, state, t, withPlotly } from "./main.js";
import { command } from "./run.js";

const EVERY = 5000; // milliseconds between two reports of a sweep that runs

export function install() {
  let current = null;
  async function fill(id, place) {
    const jobs = () => [...board.runs.values()].filter((run) => run.sweep === id);
    let found;
    try { [found] = await Promise.all([api("sweep", { sweep: id }), withPlotly()]); } catch (error) { if (current?.id === id) place.replaceChildren(make("p", { class: "note bad" }, error.message)); return; }
    if (current?.id !== id || !place.isConnected) return;
    Charts.drawn.length = 0;
    const sections = make("div");
    const open = (name) => { if (board.runs.has(`${id}/${name}`)) go("run", { id: `${id}/${name}` }); };
    place.replaceChildren(
      make("div", { class: "tiles" }, ...found.tiles.map(([label, text, note]) => make("div", { class: "panel tile" }, make("span", {}, label), make("b", {}, text), make("span", {}, note)))),
      found.best ? make("div", { class: "panel" }, make("h3", {}, found.best.title), make("p", { class: "note" }, found.best.note), command(found.best.command)) : "",
      ...(found.findings.length ? [make("div", { class: "panel", id: "findings" }, ...found.findings.map((text) => make("p", {}, text)))] : []),
      make("div", { class: "bar" }, make("button", { type: "button", onclick: () => { setChosen(jobs().map((run) => run.id)); go("curves"); } }, t("compare"))),
      ...found.failures.map((failure) => make("div", { class: "panel failure" }, make("pre", {}, failure.cause), make("p", { class: "note" }, failure.note))),
      make("div", { class: "panel jobs scroll", tabindex: 0 }, make("table", { id: "jobs" }, make("thead", {}, make("tr", {}, ...found.columns.map((column) => make("th", { scope: "col", class: column.word ? "word" : null }, column.label)))),
        make("tbody", {}, ...found.rows.map((row) => make("tr", { class: row.best ? "best" : null, tabindex: 0, onclick: () => open(row.name), onkeydown: (event) => { if (event.key === "Enter") open(row.name); } },
          ...row.cells.map(([, text], index) => make("td", { class: found.columns[index].word ? "word" : null }, text))))))),
      sections);
    found.sections.forEach((part) => Charts.section(part, sections, open));
  }
  function head() {
    const sweep = board.sweeps.get(current.id);
    if (!sweep) { current.head.replaceChildren(make("p", { class: "note" }, board.ready ? t("gone") : t("loading"))); return; }
    current.head.replaceChildren(make("h2", { class: "run-name" }, t("full_report", { name: sweep.name }), " ", state(sweep.state)),
      make("p", { class: "muted" }, Object.entries(sweep.counts).map(([name, count]) => `${count} ${t(`state_${name}`)}`).join(", "), sweep.left === null ? "" : ` · ${t("left_about", { time: seconds(sweep.left) })}`),
      sweep.command ? command(sweep.command) : "");
    if (current.state !== sweep.state) { current.state = sweep.state; current.actions.replaceChildren(); fillActions("sweep", sweep, current.actions); }
  }
  addView({
    name: "sweep", label: "view_sweep", hidden: true,
    build(main, { id }) {
      current = { id, state: null, head: make("div"), actions: make("div", { class: "bar actions" }), place: make("div", {}, make("p", { class: "note" }, t("loading"))), at: Date.now() };
      main.append(current.head, current.actions, current.place);
      head();
      fill(id, current.place);
    },
    update: ({ runs }) => {
      const mine = [...runs].some((id) => id === current.id || id.startsWith(`${current.id}/`));
      if (mine) head();
      if (mine && Date.now() - current.at > EVERY && board.ready) { current.at = Date.now(); fill(current.id, current.place); }
    },
  });
}
