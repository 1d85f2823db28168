// The page of one run.
import { addView, api, board, bytes, duration, fillActions, go, LIVE, make, number, scoreName, seconds, state, t, when } from "./main.js";
import { controls, panel } from "./curves.js";
import { viewer } from "./logs.js";
import { bars, key } from "./memory.js";

export function command(text) {
  const button = make("button", { type: "button", class: "copy", onclick: () => copy(text, button) }, t("copy"));
  return make("div", { class: "command" }, make("pre", {}, text), button);
}
async function copy(text, button) {
  try { await navigator.clipboard.writeText(text); } catch {
    const area = make("textarea", { style: "position:fixed;opacity:0" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = t("copied");
  setTimeout(() => { button.textContent = t("copy"); }, 1500);
}

export function install() {
  let parts = null;
  let charts = null;
  let log = null;
  async function fill(id) {
    let one;
    try { one = await api("run", { run: id }); } catch (error) { if (parts?.id === id) parts.head.replaceChildren(make("p", { class: "note bad" }, error.message || t("gone"))); return; }
    if (parts?.id !== id || !parts.head.isConnected) return;
    const result = one.result || {};
    head(board.runs.get(id) || one);
    const facts = [[t("folder"), one.folder], [t("col_started"), when(one.started)], [t("col_duration"), seconds(duration(one))], [t("host"), one.host],
      [t("col_speed"), one.speed && Math.round(one.speed).toLocaleString("en-US")], [t("tokens"), number(result.tokens)], [t("parameters"), number(result.trained_parameters)],
      [t("checkpoints"), one.checkpoints.join(", ")], [t("commit"), one.environment.commit?.slice(0, 12)],
      [t("packages"), Object.entries(one.environment.packages || {}).filter(([, version]) => version).map(([name, version]) => `${name} ${version}`).join(", ")]];
    parts.facts.replaceChildren(make("dl", {}, ...facts.filter(([, text]) => text).flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)])),
      one.command ? command(one.command) : "", ["stopped", "interrupted", "failed"].includes(one.state) && one.checkpoints.length ? make("div", {}, make("p", { class: "note" }, t("can_resume")), command(one.resume)) : "");
    const scores = [...new Set(["before", "best", "after"].flatMap((when_) => Object.keys(result[when_] || {})))].filter((name) => name !== "step");
    parts.scores.replaceChildren(...(scores.length ? [make("h2", {}, t("scores")), make("div", { class: "panel jobs scroll" }, make("table", { id: "scores" }, make("thead", {}, make("tr", {}, make("th", { class: "word", scope: "col" }, t("score")),
      ...["before", "best", "after"].map((name) => make("th", { scope: "col" }, t(name), name === "best" && result.best?.step !== undefined ? ` (${t("at_step", { step: result.best.step })})` : "")))),
      make("tbody", {}, ...scores.map((name) => make("tr", {}, make("th", { class: "word", scope: "row" }, scoreName(name)), ...["before", "best", "after"].map((when_) => make("td", {}, number(result[when_]?.[name]))))))))] : []));
    parts.settings.replaceChildren(...(one.changed.length ? [make("h2", {}, t("changed_settings")), make("pre", { class: "panel config" }, one.changed.map((name) => `${name}: ${one.config[name]}`).join("\n"))] : []));
    parts.memory.replaceChildren(...(one.memory ? [make("h2", {}, t("memory")), make("div", { class: "panel" }, make("p", { class: "note" }, t(one.memory.gpu ? "memory_gpu" : "memory_cpu")), key([one.memory]), ...bars(one.memory))] : []));
  }
  function head(run) {
    const of = board.sweeps.get(run.sweep);
    const live = LIVE.includes(run.state);
    parts.head.replaceChildren(
      make("p", { class: "crumbs" }, of ? make("button", { type: "button", class: "plain link", onclick: () => go("sweep", { id: of.id }) }, t("show_sweep", { name: of.name })) : ""),
      make("h2", { class: "run-name" }, run.name, " ", state(run.state)),
      run.steps ? make("p", { class: "muted" }, t("step_of", { step: number(run.step ?? 0), steps: number(run.steps) }), run.left === null ? "" : ` · ${t("left_about", { time: seconds(run.left) })}`, run.loss === null ? "" : ` · ${t("col_loss")} ${number(run.loss)}`, run.peak ? ` · ${bytes(run.peak)}` : "") : "",
      live && run.steps ? make("progress", { max: run.steps, value: run.step || 0, class: "wide", "aria-label": t("col_step") }) : "",
      run.note ? make("pre", { class: "cause" }, run.note) : "",
      run.signal ? make("p", { class: "note" }, t("signal", { signal: run.signal })) : "",
      run.state === "interrupted" ? make("p", { class: "note" }, t("interrupted_text")) : "");
    if (parts.state !== run.state) { parts.state = run.state; parts.actions.replaceChildren(); fillActions("run", run, parts.actions); }
  }
  addView({
    name: "run", label: "view_run", hidden: true,
    build(main, { id }) {
      const run = board.runs.get(id);
      const names = ["head", "actions", "facts", "scores", "settings", "memory"];
      parts = { id, state: null, ...Object.fromEntries(names.map((name) => [name, make("div", { class: name === "actions" ? "bar actions" : null, "data-part": name })])) };
      parts.facts.classList.add("panel");
      const curves = make("div");
      const logs = make("div", { class: "panel" });
      main.append(parts.head, parts.actions, parts.facts, make("h2", {}, t("curves")), controls(() => charts.draw()), curves, parts.scores, parts.memory, parts.settings, make("h2", {}, t("log_title")), logs);
      if (run) head(run);
      else if (board.ready) { main.replaceChildren(make("p", { class: "note" }, t("gone"))); parts = charts = log = null; return; }
      charts = panel(curves, () => [id], 4);
      log = viewer(logs, id);
      fill(id);
    },
    update: ({ runs }) => {
      if (!parts) return;
      const run = board.runs.get(parts.id);
      if (run && (runs.has(parts.id) || LIVE.includes(run.state))) {
        const ended = parts.state !== run.state;
        head(run);
        if (ended) fill(parts.id);
      }
      charts.update();
      log.update();
    },
  });
}
