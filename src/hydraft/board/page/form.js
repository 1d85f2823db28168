// The form that composes a new run: what is typed, the plan or the refusal of it, and its start.
import { addView, api, board, go, make, on, post, t, toast } from "./main.js";
import { language } from "./texts.js";
import { acts, onActs, refreshActs } from "./actions.js";
import { showPlan, showStarted } from "./plan.js";
import "./form_texts.js";

const DELAY = 120; // milliseconds after the last key
const PAGE = crypto.getRandomValues(new Uint32Array(2)).join("-"); // of several pages, each has its own newest request
const typed = load();
let definition = null;
let parts = null;
let result = null; // of the last plan
let values = {}; // what a run has in every setting, by the last plan that was made
let timer = null;
let number = 0;
let waiting = null; // the command that was started and is not listed yet

function load() {
  try { return { groups: {}, settings: {}, more: "", shown: [], ...JSON.parse(localStorage.getItem("composed") || "{}") }; } catch { return { groups: {}, settings: {}, more: "", shown: [] }; }
}
function save() { try { localStorage.setItem("composed", JSON.stringify(typed)); } catch { /* not kept */ } }
function text(both) { return both?.[language()] || both?.en || ""; }
function body() {
  const settings = Object.fromEntries(Object.entries(typed.settings).filter(([, value]) => value.trim() !== ""));
  return { groups: { ...typed.groups }, settings, more: typed.more };
}

// ---- what is asked of the server ----------------------------------------------------------------------------------

function changed() {
  save();
  clearTimeout(timer);
  parts?.plan.classList.add("pending");
  timer = setTimeout(ask, DELAY);
}
async function ask() {
  const mine = ++number;
  let found;
  try { found = await post("plan", { ...body(), page: PAGE }); } catch (error) { found = { refusal: error.message, fields: [], command: null }; }
  if (mine !== number || found.superseded) return;
  result = found;
  if (found.plans?.length) values = found.plans[0].values;
  show();
}
async function start() {
  if (result?.refusal || !parts) return;
  if (result?.plans?.[0]?.fits === false && !confirm(t("start_anyway"))) return;
  parts.start.disabled = true;
  try {
    const found = await post("start", body());
    refreshActs();
    if (found.refusal) { result = { ...result, refusal: found.refusal, fields: found.fields, plans: [] }; show(); return; }
    waiting = found.started;
    toast(t("starting_at", { folder: waiting.folder }));
    open();
  } catch (error) { toast(error.message, true); } finally { if (parts) parts.start.disabled = false; }
}
function open() { // the new run's own page, as soon as it is there
  if (!waiting || !parts?.start.isConnected) return;
  const there = waiting.kind === "run" ? board.runs : board.sweeps;
  if (!there.has(waiting.id)) return;
  const { kind, id } = waiting;
  waiting = null;
  go(kind, { id });
}

// ---- what is shown ------------------------------------------------------------------------------------------------

function show() {
  if (!parts) return;
  const refused = result?.refusal ? result.fields?.[0] : null;
  for (const [name, field] of parts.fields) {
    const bad = name === refused;
    field.input.toggleAttribute("aria-invalid", bad);
    if (bad) field.input.setAttribute("aria-invalid", "true");
    field.error.textContent = bad ? result.refusal : "";
    field.error.hidden = !bad;
    if (field.placeholder) field.input.placeholder = placeholder(name);
  }
  parts.groups.forEach((update) => update());
  parts.plan.classList.remove("pending");
  showPlan(parts.plan, result, { apply });
  parts.start.textContent = t(result?.sweep ? "start_sweep" : "start_run");
  parts.start.disabled = Boolean(!result || result.refusal);
}
function placeholder(name) {
  const setting = definition.settings.find((one) => one.name === name);
  return values[name] ?? setting?.default ?? "";
}
function apply(overrides) { // the cheapest change that fits
  for (const one of overrides) {
    const at = one.indexOf("=");
    const name = one.slice(0, at);
    typed.settings[name] = one.slice(at + 1);
    typed.more = typed.more.replace(new RegExp(`(^|\\s)\\+{0,2}${name.replaceAll(".", "\\.")}=\\S*`, "g"), "").trim(); // what comes later counts
    addShown(name);
  }
  build();
  changed();
}
function addShown(name) { if (!definition.usual.includes(name) && !typed.shown.includes(name)) typed.shown.push(name); }

function sizes() { // those of the chosen model
  const models = definition.groups.find((one) => one.name === "model");
  return models?.options.find((option) => option.name === (typed.groups.model || models.default))?.sizes || [];
}
function group(one) {
  const id = `group-${one.name}`;
  const note = make("p", { class: "note" });
  const error = make("p", { class: "note bad", role: "alert", hidden: true });
  const first = make("option", { value: "" }, "");
  const list = make("select", { id, onchange: () => { if (list.value) typed.groups[one.name] = list.value; else delete typed.groups[one.name]; update(); if (one.name === "model") showSizes(); changed(); } },
    first, ...one.options.map((option) => make("option", { value: option.name }, option.name)));
  list.value = typed.groups[one.name] || "";
  function update() {
    const decided = typed.groups.experiment && one.name !== "experiment" && one.name !== "sweep";
    first.textContent = decided ? t("by_experiment") : one.default === null ? t("none_option") : t("default_option", { name: one.default });
    const option = one.options.find((each) => each.name === (list.value || (decided ? null : one.default)));
    note.textContent = text(option?.summary);
  }
  update();
  parts.groups.push(update);
  parts.fields.set(one.name, { input: list, error });
  return make("div", { class: "field" }, make("label", { for: id, title: text(one.meaning) }, one.name), list, note, error);
}
function showSizes() { document.getElementById("setting-model.size-choices")?.replaceChildren(...sizes().map((size) => make("option", { value: size }))); }
function setting(one, removable) {
  const id = `setting-${one.name}`;
  const error = make("p", { class: "note bad", role: "alert", hidden: true });
  const choices = one.choices.length ? one.choices : one.type.startsWith("bool") ? ["true", "false"] : one.name === "model.size" ? sizes() : [];
  const input = make("input", { id, type: "text", autocomplete: "off", spellcheck: "false", list: choices.length || one.name === "model.size" ? `${id}-choices` : null, placeholder: placeholder(one.name), "aria-describedby": `${id}-note`,
    oninput: () => { typed.settings[one.name] = input.value; changed(); } });
  input.value = typed.settings[one.name] || "";
  const remove = () => { typed.shown = typed.shown.filter((name) => name !== one.name); delete typed.settings[one.name]; build(); changed(); };
  parts.fields.set(one.name, { input, error, placeholder: true });
  const facts = [text(one.unit), one.choices.length ? choices.join(", ") : text(one.allowed)].filter(Boolean).join(" · ");
  return make("div", { class: "field" },
    make("div", { class: "label" }, make("label", { for: id }, one.name), removable ? make("button", { type: "button", class: "plain close", "aria-label": t("remove_setting", { name: one.name }), onclick: remove }, "×") : ""),
    input, choices.length || one.name === "model.size" ? make("datalist", { id: `${id}-choices` }, ...choices.map((choice) => make("option", { value: choice }))) : "",
    make("p", { class: "note", id: `${id}-note` }, text(one.meaning), facts ? make("span", { class: "facts" }, ` ${facts}`) : ""), error);
}
function search() {
  const found = make("div", { class: "results", role: "listbox" });
  const choose = (name) => { addShown(name); input.value = ""; build(); document.getElementById(`setting-${name}`)?.focus(); };
  const matching = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return [];
    const score = (one) => words.every((word) => `${one.name} ${one.meaning.en} ${one.meaning.zh}`.toLowerCase().includes(word)) ? (words.every((word) => one.name.includes(word)) ? 2 : 1) : 0;
    return definition.settings.map((one) => [score(one), one]).filter(([points]) => points).sort((a, b) => b[0] - a[0]).slice(0, 12).map(([, one]) => one);
  };
  const input = make("input", { type: "search", id: "find-setting", placeholder: t("find_any_hint"), "aria-label": t("find_any"), autocomplete: "off",
    oninput: () => { const all = matching(); found.replaceChildren(...(all.length ? all.map((one) => make("button", { type: "button", role: "option", onclick: () => choose(one.name) }, make("b", {}, one.name), make("span", { class: "note" }, text(one.meaning)))) : input.value.trim() ? [make("p", { class: "note" }, t("no_setting"))] : [])); },
    onkeydown: (event) => { if (event.key === "Enter") { event.preventDefault(); const [one] = matching(); if (one) choose(one.name); } if (event.key === "Escape") { input.value = ""; found.replaceChildren(); } } });
  return make("div", { class: "finder" }, make("label", { for: "find-setting" }, t("find_any")), input, found);
}

function build() {
  const main = parts?.main;
  if (!main?.isConnected || !definition) return;
  parts = { main, fields: new Map(), groups: [] };
  const by = new Map(definition.settings.map((one) => [one.name, one]));
  const error = make("p", { class: "note bad", role: "alert", hidden: true });
  const more = make("input", { id: "more", type: "text", class: "mono", autocomplete: "off", spellcheck: "false", placeholder: t("more_hint"), oninput: () => { typed.more = more.value; changed(); } });
  more.value = typed.more;
  parts.plan = make("section", { class: "panel plan", "aria-live": "polite" });
  parts.start = make("button", { type: "button", class: "primary", id: "start", onclick: start }, t("start_run"));
  parts.started = make("div", { class: "started" });
  const clear = make("button", { type: "button", id: "clear", onclick: () => { Object.assign(typed, { groups: {}, settings: {}, more: "", shown: [] }); build(); changed(); } }, t("clear"));
  const left = make("form", { class: "composer", onsubmit: (event) => event.preventDefault() },
    make("section", { class: "panel" }, make("h3", {}, t("groups_title")), make("div", { class: "fields" }, ...definition.groups.map(group))),
    make("section", { class: "panel" }, make("h3", {}, t("settings_title")), make("p", { class: "note" }, t("settings_hint")), search(),
      make("div", { class: "fields" }, ...typed.shown.filter((name) => by.has(name)).map((name) => setting(by.get(name), true)), ...definition.usual.map((name) => setting(by.get(name), false)))),
    make("section", { class: "panel" }, make("h3", {}, make("label", { for: "more" }, t("more_title"))), more, error));
  main.replaceChildren(make("div", { class: "compose" }, left, make("aside", {}, parts.plan, make("div", { class: "bar" }, parts.start, clear), parts.started)));
  show();
  showStarted(parts.started, acts());
}

export function install() {
  addView({
    name: "new", label: "view_new",
    build(main) {
      parts = { main };
      if (definition) { build(); changed(); return; }
      main.append(make("p", { class: "note" }, t("loading")));
      api("form").then((found) => { definition = found; build(); changed(); }, (error) => main.replaceChildren(make("p", { class: "note bad" }, error.message)));
      refreshActs();
    },
    update: () => open(),
  });
  onActs((found) => {
    if (parts?.started?.isConnected) showStarted(parts.started, found);
    const ended = waiting && found.started.find((one) => one.id === waiting.id && one.code !== null);
    if (ended?.refusal) { waiting = null; result = { ...result, refusal: ended.refusal, fields: ended.fields, plans: [] }; show(); }
  });
  on("changed", open);
}
