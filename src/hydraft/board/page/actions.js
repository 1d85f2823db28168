// What the page does to runs and sweeps: stop, resume, copy the command.
import { addRunAction, addSweepAction, api, LIVE, make, on, poll, post, t, toast } from "./main.js";
import "./form_texts.js";

const EVERY = 1000; // milliseconds between two looks at what the board has started
const CHANGED = ["train.epochs", "train.max_steps", "train.eval_every", "train.patience"]; // of runs/resume.py, CHANGEABLE
let known = { started: [], stopping: {} };
let timer = null;
const listeners = [];
const bars = new Set(); // { kind, record, place }

export function acts() { return known; }
export function onActs(f) { listeners.push(f); }
export async function refreshActs() {
  clearTimeout(timer);
  const state = () => JSON.stringify([known.stopping, known.started.map((one) => [one.id, one.code, one.refusal])]);
  const before = state();
  try { known = await api("acts"); } catch { /* the poll says that the board is gone */ }
  listeners.forEach((f) => f(known));
  if (before !== state()) bars.forEach(draw);
  const busy = known.started.some((one) => one.code === null) || Object.keys(known.stopping).length;
  timer = setTimeout(refreshActs, document.hidden || !busy ? 10 * EVERY : EVERY);
}

async function act(path, body, done) {
  try {
    const found = await post(path, body);
    if (found.refusal) toast(found.refusal, true); else done?.(found);
    return found;
  } catch (error) { toast(error.message, true); return null; } finally { await refreshActs(); poll(); }
}
function button(name, label, onclick, more = {}) { return make("button", { type: "button", "data-action": name, onclick, ...more }, label); }

function draw(bar) {
  const { kind, record, place, more } = bar;
  if (!place.isConnected) { if (bar.shown) bars.delete(bar); return; }
  bar.shown = true;
  const of = { id: record.id, kind };
  const stopping = known.stopping[record.id];
  const begins = known.started.some((one) => one.id === record.id && one.code === null);
  const live = begins || (kind === "run" ? LIVE.includes(record.state) : record.state === "running");
  const job = kind === "run" && record.sweep;
  const stop = (now) => act("stop", { ...of, now }, () => toast(t("stop_asked")));
  const items = [];
  if (stopping) {
    items.push(make("span", { class: "note", role: "status" }, t(stopping.now ? "stopping_now" : "stopping")));
    if (!stopping.now) items.push(button("stop-now", t("stop_now"), () => { if (confirm(t("stop_now_sure"))) stop(true); }, { class: "danger" }));
  } else if (live && !job) items.push(button("stop", t("stop"), () => stop(false), { title: t("stop_title") }));
  if (!live && kind === "run" && !job && record.state !== "queued" && record.state !== "unreadable") items.push(button("resume", t("resume"), () => resume(bar)));
  if (kind === "sweep" && !live && record.state !== "unreadable") {
    const counts = record.counts || {};
    if (Object.entries(counts).some(([state, count]) => count && !["completed", "pruned", "refused", "failed", "diverged"].includes(state))) items.push(button("resume", t("resume_sweep"), () => act("resume", of, () => toast(t("resuming")))));
    if (counts.failed || counts.diverged) items.push(button("retry", t("retry_failed"), () => act("resume", { ...of, retry_failed: true }, () => toast(t("resuming")))));
  }
  items.push(button("copy", t("copy_command"), copy(of)));
  if (job) items.push(make("span", { class: "note" }, t("part_of_sweep")));
  const refusal = known.started.find((one) => one.id === record.id)?.refusal; // it may come later than the answer to the start
  place.replaceChildren(...items, more, refusal ? make("pre", { class: "refusal", role: "alert" }, refusal) : "");
}
function copy(of) {
  return async (event) => {
    const { target } = event;
    let found;
    try { found = await api("command", of); } catch (error) { toast(error.message, true); return; }
    if (!found.command) { toast(t("no_command"), true); return; }
    try { await navigator.clipboard.writeText(found.command); } catch { toast(found.command); return; }
    target.textContent = t("copied");
    setTimeout(() => { target.textContent = t("copy_command"); }, 1500);
  };
}
async function resume({ record, more }) {
  if (more.childElementCount) { more.replaceChildren(); return; }
  let config = {};
  try { config = (await api("run", { run: record.id })).config; } catch { /* shown without what it has now */ }
  const inputs = new Map(CHANGED.map((name) => [name, make("input", { type: "text", id: `resume-${name}`, placeholder: t("current", { value: config[name] ?? "" }), autocomplete: "off" })]));
  const others = make("input", { type: "text", class: "mono", "aria-label": t("more_title"), placeholder: "train.save_every=50 tracker=tensorboard", autocomplete: "off" });
  const begin = async () => {
    const settings = Object.fromEntries([...inputs].map(([name, input]) => [name, input.value.trim()]).filter(([, value]) => value));
    start.disabled = true;
    await act("resume", { id: record.id, kind: "run", settings, more: others.value }, () => { toast(t("resuming")); more.replaceChildren(); });
    start.disabled = false;
  };
  const start = button("resume-start", t("resume_start"), begin, { class: "primary" });
  more.replaceChildren(make("p", { class: "note" }, t("resume_hint")), make("div", { class: "fields" }, ...[...inputs].map(([name, input]) => make("div", { class: "field" }, make("label", { for: input.id }, name), input))), others, make("div", { class: "bar" }, start));
  inputs.get("train.epochs").focus();
}

export function install() {
  const add = (kind) => (record, place) => {
    const own = make("div", { class: "bar acts" });
    place.append(own);
    const bar = { kind, record, place: own, more: make("div", { class: "resuming" }) };
    bars.add(bar);
    draw(bar);
    queueMicrotask(() => draw(bar));
  };
  addRunAction(add("run"));
  addSweepAction(add("sweep"));
  on("changed", () => bars.forEach((bar) => { if (bar.shown && !bar.place.isConnected) bars.delete(bar); }));
  refreshActs();
}
