// The table of all runs and sweeps.
import { panel } from "./curves.js";
import { command } from "./run.js";
import { addView, board, bytes, differing, dot, duration, go, LIVE, make, number, on, scoreName, seconds, setChosen, shortKey, state, t, toggle, value, when } from "./main.js";

const kept = JSON.parse(localStorage.getItem("table") || "{}");
const view = { sort: "started", down: true, find: "", group: true, hidden: {}, folded: {}, ...kept, find: "" };
function keep() { localStorage.setItem("table", JSON.stringify({ sort: view.sort, down: view.down, group: view.group, hidden: view.hidden, folded: view.folded })); }
const SCORES = 3; // scores that are shown unless others are chosen
const cells = new Map(); // rows by id, made again only if their run has changed
let parts = null;

function scores(runs) {
  const found = new Set();
  for (const run of runs) for (const name of Object.keys(run.scores)) found.add(name);
  found.delete("loss");
  return ["loss", ...[...found].filter((name) => name !== "empty" && name !== "step"), ...[...found].filter((name) => name === "empty")];
}

function columns(runs) {
  const known = [
    { key: "state", label: t("col_state"), word: true, get: (run) => run.state, show: (run) => [state(run.state), run.host ? make("small", {}, ` ${t("on_host", { host: run.host })}`) : ""] },
    { key: "step", label: t("col_step"), get: (run) => run.step, show: progress },
    { key: "left", label: t("col_left"), get: (run) => run.left, show: (run) => seconds(run.left) },
    { key: "loss", label: t("col_loss"), get: (run) => run.loss, show: (run) => number(run.loss) },
    ...scores(runs).map((name, index) => ({ key: `score:${name}`, label: scoreName(name), off: index > SCORES, get: (run) => run.scores[name], show: (run) => number(run.scores[name]) })),
    ...differing(runs.map((run) => run.id)).map((key) => ({ key: `set:${key}`, label: shortKey(key), title: key, get: (run) => run.settings[key], show: (run) => (run.settings[key] === undefined ? "" : value(run.settings[key])) })),
    { key: "speed", label: t("col_speed"), get: (run) => run.speed, show: (run) => (run.speed === null ? "" : Math.round(run.speed).toLocaleString("en-US")) },
    { key: "peak", label: t("col_peak"), get: (run) => run.peak, show: (run) => bytes(run.peak) },
    { key: "duration", label: t("col_duration"), get: duration, show: (run) => seconds(duration(run)) },
    { key: "started", label: t("col_started"), get: (run) => run.started, show: (run) => when(run.started) },
  ];
  return known.filter((column) => !column.key.startsWith("score:") || runs.some((run) => column.get(run) !== undefined));
}
const isOff = (column) => view.hidden[column.key] ?? Boolean(column.off);

function progress(run) {
  if (run.step === null && run.steps === null) return "";
  const bar = LIVE.includes(run.state) && run.steps ? make("progress", { max: run.steps, value: run.step || 0, "aria-label": t("col_step") }) : "";
  return [`${number(run.step ?? 0)}${run.steps ? ` / ${number(run.steps)}` : ""}`, bar];
}

function matches(run) {
  const words = view.find.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return true;
  const settings = Object.entries(run.settings).flatMap(([key, one]) => [`${key}=${value(one)}`, `${shortKey(key)}=${value(one)}`]);
  const text = [run.id, run.state, t(`state_${run.state}`), run.note, ...settings].join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}

function order(runs, columns_) {
  const column = columns_.find((one) => one.key === view.sort);
  const get = view.sort === "name" ? (run) => run.name : column ? column.get : (run) => run.started;
  const none = (x) => x === null || x === undefined || x === "";
  return [...runs].sort((a, b) => {
    const [x, y] = [get(a), get(b)];
    if (none(x) || none(y)) return none(x) - none(y);
    const found = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
    return view.down ? -found : found;
  });
}

function row(run, shown, key) {
  const known = cells.get(run.id);
  const chosen = board.chosen.includes(run.id);
  const live = LIVE.includes(run.state);
  if (known && known.run === run && known.key === key && known.chosen === chosen && !live) return known.row;
  const box = make("input", { type: "checkbox", "aria-label": t("choose", { name: run.name }), onchange: () => toggle(run.id) });
  box.checked = chosen;
  const made = make("tr", { "data-run": run.id, class: `${run.sweep && view.group ? "job " : ""}${chosen ? "chosen-row" : ""}` },
    make("td", { class: "pick" }, box, chosen ? dot(run.id) : ""),
    make("th", { scope: "row", class: "word name" }, make("a", { href: "#", title: run.id, onclick: (event) => { event.preventDefault(); go("run", { id: run.id }); } }, run.name),
      run.note ? make("small", { class: "why", title: run.note }, run.note) : ""),
    ...shown.map((column) => make("td", { class: column.word ? "word" : null }, ...[column.show(run)].flat())));
  const focused = known?.row.contains(document.activeElement) ? document.activeElement.tagName : null;
  cells.set(run.id, { run, key, chosen, row: made });
  if (focused) setTimeout(() => made.querySelector(focused.toLowerCase())?.focus());
  return made;
}

function sweepRow(sweep, jobs, width) {
  const folded = Boolean(view.folded[sweep.id]);
  const done = Object.entries(sweep.counts).filter(([name]) => ["completed", "pruned"].includes(name)).reduce((sum, [, count]) => sum + count, 0);
  const others = Object.entries(sweep.counts).filter(([name]) => name !== "completed").map(([name, count]) => `${count} ${t(`state_${name}`)}`).join(", ");
  const ids = jobs.map((run) => run.id);
  const box = make("input", { type: "checkbox", "aria-label": t("choose", { name: sweep.name }), onchange: () => setChosen(box.checked ? [...board.chosen, ...ids] : board.chosen.filter((id) => !ids.includes(id))) });
  box.checked = ids.length > 0 && ids.every((id) => board.chosen.includes(id));
  return make("tr", { class: "sweep", "data-sweep": sweep.id }, make("td", { class: "pick" }, box), make("th", { scope: "rowgroup", class: "word", colspan: width + 1 },
    make("button", { type: "button", class: "plain fold", "aria-expanded": String(!folded), "aria-label": t("fold", { name: sweep.name }), onclick: () => { view.folded[sweep.id] = !folded; keep(); fill(); } }, folded ? "▸" : "▾"),
    make("a", { href: "#", onclick: (event) => { event.preventDefault(); go("sweep", { id: sweep.id }); } }, sweep.name), " ", state(sweep.state), " ",
    make("span", { class: "muted" }, [t("jobs", { done, jobs: sweep.jobs }), others, sweep.left === null ? "" : t("left_about", { time: seconds(sweep.left) })].filter(Boolean).join(" · ")),
    sweep.note ? make("small", { class: "why" }, sweep.note) : ""));
}

function fill() {
  if (!parts?.body.isConnected) return;
  const all = [...board.runs.values()];
  parts.empty.hidden = !board.ready || all.length + board.sweeps.size > 0;
  parts.full.hidden = !parts.empty.hidden;
  const found = all.filter(matches);
  const columns_ = columns(all);
  const shown = columns_.filter((column) => !isOff(column));
  const key = shown.map((column) => column.key).join() + view.group;
  parts.found = found;
  heads(shown);
  choices(columns_);
  const rows = [];
  const sorted = order(found, columns_);
  if (view.group) {
    const groups = new Map();
    for (const run of sorted) { if (run.sweep) groups.set(run.sweep, [...(groups.get(run.sweep) || []), run]); }
    const put = new Set();
    const group = (id) => {
      put.add(id);
      const jobs = groups.get(id) || [];
      if (board.sweeps.has(id)) rows.push(sweepRow(board.sweeps.get(id), jobs, shown.length));
      if (!view.folded[id]) for (const run of jobs) rows.push(row(run, shown, key));
    };
    for (const run of sorted) {
      if (!run.sweep) rows.push(row(run, shown, key));
      else if (!put.has(run.sweep)) group(run.sweep);
    }
    if (!view.find) for (const id of board.sweeps.keys()) if (!put.has(id)) group(id);
  } else for (const run of sorted) rows.push(row(run, shown, key));
  place(rows);
  for (const id of cells.keys()) if (!board.runs.has(id)) cells.delete(id);
  parts.count.textContent = found.length === all.length ? "" : t("shown_of", { shown: found.length, all: all.length });
  parts.none.hidden = rows.length > 0;
  parts.pick.checked = found.length > 0 && found.every((run) => board.chosen.includes(run.id));
  parts.notes.replaceChildren(...(board.notes.size ? [make("h2", {}, t("notes_title")), make("ul", { class: "panel" }, ...[...board.notes.values()].map((note) => make("li", {}, make("code", {}, note.id), ` ${note.note}`)))] : []));
}

function place(rows) { // only what is new or has moved is touched, so that focus and selection stay
  const body = parts.body;
  let at = body.firstChild;
  const wanted = new Set(rows);
  while (at) { const next = at.nextSibling; if (!wanted.has(at)) at.remove(); at = next; }
  at = body.firstChild;
  for (const one of rows) { if (one === at) at = at.nextSibling; else body.insertBefore(one, at); }
}

function heads(shown) {
  const key = shown.map((column) => column.key + column.label).join() + view.sort + view.down;
  if (parts.headKey === key) return;
  parts.headKey = key;
  const head = (name, label, word, title) => make("th", { scope: "col", class: word ? "word" : null, title: title || null, "aria-sort": view.sort === name ? (view.down ? "descending" : "ascending") : null },
    make("button", { type: "button", onclick: () => { view.down = view.sort === name ? !view.down : true; view.sort = name; keep(); fill(); } }, label));
  parts.pick = make("input", { type: "checkbox", "aria-label": t("choose_all"), onchange: () => {
    const ids = parts.found.map((run) => run.id);
    setChosen(parts.pick.checked ? [...board.chosen, ...ids] : board.chosen.filter((id) => !ids.includes(id)));
  } });
  parts.head.replaceChildren(make("th", { class: "pick", scope: "col" }, parts.pick), head("name", t("col_name"), true), ...shown.map((column) => head(column.key, column.label, column.word, column.title)));
}

function choices(all) {
  const key = all.map((column) => `${column.key}${isOff(column)}`).join();
  if (parts.choiceKey === key) return;
  parts.choiceKey = key;
  parts.choices.replaceChildren(...all.map((column) => {
    const box = make("input", { type: "checkbox", onchange: () => { view.hidden[column.key] = !box.checked; keep(); fill(); } });
    box.checked = !isOff(column);
    return make("label", {}, box, ` ${column.title || column.label}`);
  }));
}

function above() { // the losses of the chosen runs, over the table
  if (!parts?.curves.isConnected) return;
  if (!board.chosen.length) { parts.curves.replaceChildren(); parts.charts = null; return; }
  if (parts.charts) parts.charts.update(true);
  else parts.charts = panel(parts.curves, () => board.chosen, 2, 2);
}

function build(main) {
  cells.clear();
  const group = make("input", { type: "checkbox", onchange: () => { view.group = group.checked; keep(); fill(); } });
  group.checked = view.group;
  const find = make("input", { type: "search", id: "find", placeholder: t("find_hint"), "aria-label": t("find"), oninput: () => { view.find = find.value; fill(); } });
  find.value = view.find;
  parts = { body: make("tbody"), head: make("tr"), count: make("span", { class: "muted", role: "status" }), none: make("p", { class: "note" }, t("none_found")), choices: make("div", { class: "choices panel" }), notes: make("div") };
  parts.full = make("div", {},
    make("div", { class: "bar" }, find, make("label", {}, group, ` ${t("group")}`), make("details", { class: "menu" }, make("summary", {}, t("columns")), parts.choices), parts.count),
    make("div", { class: "panel jobs scroll", tabindex: 0, role: "region", "aria-label": t("view_runs") }, make("table", { id: "runs" }, make("thead", {}, parts.head), parts.body), parts.none));
  parts.empty = make("div", { class: "panel empty", id: "empty", hidden: true });
  parts.curves = make("div", { class: "above" });
  main.append(parts.curves, parts.full, parts.empty, parts.notes);
  above();
  tell();
  fill();
}

function tell() { // how to start, while there is nothing to show
  const where = t("empty_where", { folders: board.roots.map((root) => root.folder).join(", ") });
  parts.empty.replaceChildren(make("h2", {}, t("empty_title")), make("p", {}, t("empty_text")), command(board.command), make("p", { class: "note", id: "where" }, where));
}

export function install() {
  addView({ name: "runs", label: "view_runs", build, update: ({ runs }) => {
    parts?.charts?.update();
    if (parts?.empty.isConnected) tell();
    if (runs.size || [...board.runs.values()].some((run) => LIVE.includes(run.state))) fill();
  } });
  on("chosen", () => { fill(); above(); });
}
