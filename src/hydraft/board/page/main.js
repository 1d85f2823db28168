// The board's page: what it knows, the poll that keeps it up to date, the views and their addresses.
//
// For modules that add to the page (form.js, actions.js); everything is imported from here:
//   board                    .runs and .sweeps (Map: id -> what /api/board says of it), .notes, .keys (settings that differ), .chosen (ids)
//   on(event, f)             "changed" (new records are in `board`; f({ runs: Set of ids })), "chosen", "language", "theme"
//   t(name, values)          a text in the chosen language; addTexts({ en: {...}, zh: {...} }) adds some; "{x}" is replaced by values.x
//   addView({ name, label, build, update?, hidden? })  a tab: label is a text's name; build(place, parameters) fills an empty element and is
//                            called again with a new language; update({ runs }) is called while the view is shown, after each poll
//   addRunAction(f)          f(run, place): fills the bar of actions of a run, on its page; addSweepAction(f): of a sweep
//   go(view, parameters)     change the view; api(path, parameters) GET and post(path, body) -> JSON, both throw Error(message of the server)
//   toast(text, bad)         a message at the edge of the page; poll() asks for news at once
import { addTexts, language, languages, setLanguage, t } from "./texts.js";

const { make, drawn } = Charts;
export { addTexts, make, t };

export const board = { runs: new Map(), sweeps: new Map(), notes: new Map(), keys: [], roots: [], command: "", chosen: [], version: 0, offset: 0, ready: false };
const EVERY = 1000; // milliseconds between two polls, and ten times that while the page is hidden
const SLOTS = 10; // colours
const views = new Map();
const handlers = new Map();
const runActions = [];
const sweepActions = [];
let shown = null; // the view on the page, and its parameters
let timer = null;
let asking = null;

export function on(event, f) { handlers.set(event, [...(handlers.get(event) || []), f]); }
function emit(event, value) { (handlers.get(event) || []).forEach((f) => f(value)); }
export function addView(view) { views.set(view.name, view); }
export function addRunAction(f) { runActions.push(f); }
export function addSweepAction(f) { sweepActions.push(f); }
export function fillActions(kind, record, place) { (kind === "run" ? runActions : sweepActions).forEach((f) => f(record, place)); }
export function now() { return Date.now() / 1000 + board.offset; } // by the server's clock

async function answer(response) {
  let body;
  try { body = await response.json(); } catch { body = null; }
  if (!response.ok) throw new Error(body?.error?.message || `${response.status} ${response.statusText}`);
  return body;
}
export async function api(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) [value].flat().forEach((one) => { if (one !== null && one !== undefined) query.append(name, one); });
  return answer(await fetch(`/api/${path}?${query}`));
}
export async function post(path, body) {
  return answer(await fetch(`/api/${path}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }));
}
export function toast(text, bad = false) {
  const box = make("div", { class: `toast${bad ? " bad" : ""}` }, text);
  document.getElementById("toasts").append(box);
  setTimeout(() => box.remove(), bad ? 12000 : 5000);
}

// ---- the poll -----------------------------------------------------------------------------------------------------

export function poll() {
  clearTimeout(timer);
  asking ||= ask().finally(() => { asking = null; timer = setTimeout(poll, document.hidden ? 10 * EVERY : EVERY); });
  return asking;
}

async function ask() {
  let found;
  try { found = await api("board", { since: board.version }); } catch (error) {
    document.body.dataset.lost = "true";
    counts(error);
    return;
  }
  delete document.body.dataset.lost;
  board.offset = found.now - Date.now() / 1000;
  const changed = new Set();
  if (found.whole) { board.runs.clear(); board.sweeps.clear(); board.notes.clear(); }
  for (const run of found.runs) { board.runs.set(run.id, run); changed.add(run.id); }
  for (const sweep of found.sweeps) { board.sweeps.set(sweep.id, sweep); changed.add(sweep.id); }
  for (const note of found.notes) { board.notes.set(note.id, note); changed.add(note.id); }
  for (const name of found.gone) {
    const [kind, id] = [name.slice(0, name.indexOf(":")), name.slice(name.indexOf(":") + 1)];
    board[`${kind}s`].delete(id);
    changed.add(id);
  }
  const news = changed.size > 0 || !board.ready || found.version !== board.version;
  Object.assign(board, { version: found.version, keys: found.keys, roots: found.roots, command: found.command, ready: true });
  if (news) {
    const kept = board.chosen.filter((id) => board.runs.has(id));
    if (kept.length !== board.chosen.length) setChosen(kept);
    emit("changed", { runs: changed });
    chips();
  }
  counts();
  if (shown) shown.view.update?.({ runs: changed });
}

export const LIVE = ["starting", "running", "evaluating", "saving"];

function counts(error) {
  const place = document.getElementById("counts");
  if (error) { place.textContent = t("lost"); return; }
  const live = [...board.runs.values()].filter((run) => LIVE.includes(run.state)).length;
  place.textContent = t("counts", { runs: board.runs.size, sweeps: board.sweeps.size, live });
  document.title = live ? `(${live}) hydraft ${t("board")}` : `hydraft ${t("board")}`;
}

// ---- the chosen runs ----------------------------------------------------------------------------------------------

const slots = new Map(); // colours stay with a run as long as it is chosen

export function setChosen(ids) {
  board.chosen = [...new Set(ids)];
  for (const id of slots.keys()) if (!board.chosen.includes(id)) slots.delete(id);
  for (const id of board.chosen) {
    if (slots.has(id)) continue;
    const taken = new Set(slots.values());
    const free = [...Array(SLOTS).keys()].find((slot) => !taken.has(slot));
    slots.set(id, free ?? slots.size % SLOTS);
  }
  chips();
  address();
  emit("chosen");
}
export function toggle(id) { setChosen(board.chosen.includes(id) ? board.chosen.filter((one) => one !== id) : [...board.chosen, id]); }
export function slotOf(id, index = 0) { return slots.get(id) ?? index % SLOTS; }

export function subjects(most = 8) { // the chosen runs, or the newest
  if (board.chosen.length) return board.chosen.filter((id) => board.runs.has(id));
  const begun = [...board.runs.values()].filter((run) => run.state !== "queued" && run.state !== "unreadable");
  return begun.sort((a, b) => (b.started || 0) - (a.started || 0)).slice(0, most).map((run) => run.id);
}

const TOGETHER = ["model", "quant", "lora", "zero", "cluster", "data", "objective", "kernels"];

export function differing(ids) { // settings that differ among runs; of those of a group that always change together, the first
  const runs = ids.map((id) => board.runs.get(id)).filter((run) => run && Object.keys(run.settings).length);
  const known = {};
  return board.keys.filter((key) => {
    const values = runs.map((run) => run.settings[key]);
    const there = new Set(values.filter((value) => value !== undefined).map(String));
    if (there.size < 2) return false;
    const group = key.split(".")[0];
    if (TOGETHER.includes(group)) {
      const same = (known[group] || []).some((other) => {
        const pairs = new Set(values.map((value, i) => `${value}\0${other[i]}`));
        return pairs.size === there.size && there.size === new Set(other.map(String)).size;
      });
      if (same) return false;
      (known[group] ||= []).push(values);
    }
    return true;
  });
}

export function labels(ids) { // what tells runs apart, not the names of their folders
  const keys = differing(ids).slice(0, 5);
  const found = new Map();
  const counted = new Map();
  for (const id of ids) {
    const run = board.runs.get(id);
    const parts = keys.filter((key) => run?.settings[key] !== undefined).map((key) => `${shortKey(key)}=${value(run.settings[key])}`);
    const text = parts.join(", ") || run?.name || id;
    counted.set(text, (counted.get(text) || 0) + 1);
    found.set(id, text);
  }
  for (const [id, text] of found) if (counted.get(text) > 1 && board.runs.get(id)) found.set(id, `${text} · ${board.runs.get(id).name}`);
  return found;
}
export function shortKey(key) {
  const last = key.slice(key.lastIndexOf(".") + 1);
  return { learning_rate: "lr", micro_batch_size: "batch", kind: key.split(".")[0], method: "lora", name: key.split(".")[0], stage: "zero" }[last] || last;
}

function chips() {
  const place = document.getElementById("chosen");
  place.hidden = !board.chosen.length;
  const names = labels(board.chosen);
  place.replaceChildren(...board.chosen.map((id) => make("span", { class: "chip" }, dot(id),
    make("button", { type: "button", class: "plain", title: id, onclick: () => go("run", { id }) }, names.get(id)),
    make("button", { type: "button", class: "plain close", "aria-label": t("leave_out", { name: names.get(id) }), onclick: () => toggle(id) }, "×"))),
    board.chosen.length ? make("button", { type: "button", class: "plain muted", onclick: () => setChosen([]) }, t("choose_none")) : "");
}
export function dot(id, index = 0) { return make("i", { class: `dot c${slotOf(id, index)}` }); }

// ---- views and addresses ------------------------------------------------------------------------------------------

function address() {
  const query = new URLSearchParams(shown ? { view: shown.view.name, ...shown.parameters } : {});
  board.chosen.forEach((id) => query.append("run", id));
  history.replaceState(null, "", `#${query}`);
}
export function go(name, parameters = {}) {
  const query = new URLSearchParams({ view: name, ...parameters });
  board.chosen.forEach((id) => query.append("run", id));
  if (location.hash === `#${query}`) open(); else location.hash = query;
}
function open() {
  const query = new URLSearchParams(location.hash.slice(1));
  const ids = query.getAll("run");
  const view = views.get(query.get("view")) || views.get("runs");
  const parameters = Object.fromEntries([...query].filter(([name]) => name !== "view" && name !== "run"));
  shown = { view, parameters };
  document.getElementById("main").replaceChildren();
  if (ids.join("\n") !== board.chosen.join("\n")) setChosen(ids.filter((id) => board.runs.has(id)));
  show(view, parameters);
}
function show(view, parameters) {
  const main = document.getElementById("main");
  drawn.length = 0;
  shown = { view, parameters };
  main.replaceChildren();
  main.dataset.view = view.name;
  view.build(main, parameters);
  tabs();
  window.scrollTo(0, 0);
}
export function rebuild() { if (shown) show(shown.view, shown.parameters); }

function tabs() {
  document.getElementById("views").replaceChildren(...[...views.values()].filter((view) => !view.hidden).map((view) =>
    make("button", { type: "button", class: view.name === "new" ? "new" : null, "aria-current": view === shown?.view ? "page" : null, onclick: () => go(view.name) }, t(view.label))));
}

// ---- language and colours -----------------------------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"];
function setTheme(name) {
  localStorage.setItem("theme", name);
  if (name === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = name;
  emit("theme");
  drawn.forEach((one) => one.show());
}
function tools() {
  document.documentElement.lang = language() === "zh" ? "zh-CN" : "en";
  document.getElementById("title").textContent = t("board");
  document.getElementById("skip").textContent = t("skip");
  document.getElementById("views").setAttribute("aria-label", t("views"));
  const theme = localStorage.getItem("theme") || "auto";
  const themes = make("select", { "aria-label": t("colours"), id: "theme", onchange: (event) => setTheme(event.target.value) },
    ...THEMES.map((name) => make("option", { value: name, selected: name === theme }, t(`theme_${name}`))));
  const tongues = make("select", { "aria-label": "Language / 语言", id: "language", onchange: (event) => { setLanguage(event.target.value); tools(); chips(); counts(); emit("language"); rebuild(); } },
    ...Object.entries(languages).map(([name, label]) => make("option", { value: name, selected: name === language() }, label)));
  document.getElementById("tools").replaceChildren(tongues, themes);
}

// ---- numbers ------------------------------------------------------------------------------------------------------

export function number(x, digits = 4) {
  if (x === null || x === undefined || x === "") return "";
  if (typeof x !== "number") return String(x);
  if (x && (Math.abs(x) < 1e-3 || Math.abs(x) >= 1e6)) return x.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  if (Number.isInteger(x)) return x.toLocaleString("en-US");
  return Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en-US") : String(+x.toPrecision(digits));
}
export function value(x) { return x === null ? "null" : typeof x === "number" && !Number.isInteger(x) ? number(x) : String(x); }
export function seconds(x) {
  if (x === null || x === undefined) return "";
  const s = Math.max(0, Math.round(x));
  const [h, m] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  return h ? `${h}:${String(m).padStart(2, "0")}:${String(s % 60).padStart(2, "0")}` : `${m}:${String(s % 60).padStart(2, "0")}`;
}
export function bytes(x) { return x === null || x === undefined ? "" : x >= 0.1 * 2 ** 30 ? `${(x / 2 ** 30).toFixed(2)} GiB` : `${(x / 2 ** 20).toFixed(1)} MiB`; }
export function when(x) {
  if (!x) return "";
  const at = new Date(x * 1000);
  const two = (n) => String(n).padStart(2, "0");
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${two(at.getHours())}:${two(at.getMinutes())}`;
}
export function duration(run) { return run.started ? (run.ended || (LIVE.includes(run.state) ? now() : run.moved)) - run.started : null; }
export function state(name) { return make("span", { class: `state state-${name}` }, t(`state_${name}`)); }
export function scoreName(name) { return name === "loss" ? t("held_out_loss") : name.replaceAll("_", " "); }

// ---- start --------------------------------------------------------------------------------------------------------

async function begin() {
  const theme = localStorage.getItem("theme");
  if (theme && theme !== "auto") document.documentElement.dataset.theme = theme;
  tools();
  for (const name of ["runs", "curves", "configs", "answers", "memory", "logs", "run", "sweep", "form", "actions"]) {
    try { (await import(`./${name}.js`)).install?.(); } catch (error) { console.error(error); toast(`${name}.js: ${error}`, true); }
  }
  addEventListener("hashchange", open);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { emit("theme"); drawn.forEach((one) => one.show()); });
  tabs();
  document.getElementById("main").append(make("p", { class: "note" }, t("loading")));
  await poll();
  open();
  performance.mark("ready");
  document.documentElement.dataset.ready = "true";
}
let plotly = null;
export function withPlotly() { // 5 MB, only once there is a chart
  plotly ||= new Promise((done, failed) => { document.head.append(make("script", { src: "/plotly.js", onload: done, onerror: () => failed(new Error("plotly.js")) })); });
  return plotly;
}
begin();
