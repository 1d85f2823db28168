// A plan or a refusal, and the commands that the board has started, as the form shows them.
import { board, bytes, go, make, t } from "./main.js";
import { command } from "./run.js";

const PARTS = ["weights", "adapter", "gradients", "optimizer", "activations", "logits", "cache", "buffers", "overhead"];
const STOPPED = [0, 130, 137, 143, -9, -15]; // exit codes of a run that ended, or that a signal did
const SHADES = [0, 1, 2, 3, 4, 5, 6, 9, 7];

export function showPlan(place, result, { apply }) {
  if (!result) { place.replaceChildren(make("p", { class: "note" }, t("planning"))); return; }
  const opened = place.querySelector("details")?.open;
  const plans = result.plans || [];
  const [first] = plans;
  place.replaceChildren(
    result.command ? command(result.command) : "",
    result.sweep ? make("p", { class: "sweep-size", id: "jobs-count" }, result.searches ? t("sweep_searches") : result.jobs ? t("sweep_of", { jobs: result.jobs }) : t("sweep_unknown"), plans.length && result.jobs > plans.length ? make("span", { class: "note" }, ` ${t("sweep_first", { count: plans.length })}`) : "") : "",
    result.refusal ? make("pre", { class: "refusal", role: "alert", id: "refusal" }, result.refusal) : "",
    first && !result.refusal ? make("div", { id: "plan" }, make("p", { class: "headline" }, first.headline, " ", badge(plans)), make("p", {}, first.batch), first.parameters ? make("p", {}, first.parameters) : "",
      ...first.refused.map((text) => make("p", { class: "warning" }, t("refused_here", { text }))), ...bars(first), ...verdicts(plans, apply)) : "",
    result.text ? make("details", { open: opened }, make("summary", {}, t("as_printed")), make("pre", { class: "printed" }, result.text)) : "");
}
function badge(plans) {
  const worst = plans.some((one) => one.fits === false) ? false : plans.every((one) => one.fits) ? true : null;
  return make("span", { class: `state ${worst === false ? "state-failed" : worst ? "state-completed" : ""}`, id: "fits" }, t(worst === false ? "does_not_fit" : worst ? "fits" : "unknown_fit"));
}
function verdicts(plans, apply) {
  const found = plans.filter((one) => one.fits === false || (one.fits === null && one.verdict));
  return [...new Map(found.map((one) => [one.verdict, one])).values()].slice(0, 3).flatMap((one) => [
    make("p", { class: one.fits === false ? "warning" : "note" }, plans.length > 1 ? `${one.headline}: ` : "", one.verdict),
    one.change?.length ? make("button", { type: "button", class: "apply", onclick: () => apply(one.change) }, t("apply", { change: one.change.join(" ") })) : ""]);
}
function bars(plan) {
  if (!plan.phases.length) return plan.verdict ? [make("p", { class: "note" }, plan.verdict)] : [];
  const most = Math.max(plan.limit || 0, ...plan.phases.map((phase) => phase.total), 1);
  const width = (size) => `width:${(100 * size / most).toFixed(3)}%`;
  const there = PARTS.filter((part) => plan.phases.some((phase) => phase.parts[part]));
  return [...plan.phases.map((phase) => make("div", { class: "memory" }, make("span", {}, t(`phase_${phase.phase}`)),
    make("div", { class: "stack limited", role: "img", "aria-label": `${t(`phase_${phase.phase}`)} ${bytes(phase.total)}` }, ...PARTS.filter((part) => phase.parts[part]).map((part) => make("i", { class: `c${SHADES[PARTS.indexOf(part)]}`, style: width(phase.parts[part]), title: `${t(`part_${part}`)} ${bytes(phase.parts[part])}` })),
      plan.limit && plan.limit < most ? make("b", { class: "limit", style: `left:${(100 * plan.limit / most).toFixed(2)}%` }) : ""),
    make("b", {}, plan.limit ? t("of_limit", { size: bytes(phase.total), limit: bytes(plan.limit) }) : bytes(phase.total)))),
  make("div", { class: "legend" }, ...there.map((part) => make("span", {}, make("i", { class: `dot c${SHADES[PARTS.indexOf(part)]}` }), t(`part_${part}`), ` ${bytes(Math.max(...plan.phases.map((phase) => phase.parts[part] || 0)))}`)))];
}

export function showStarted(place, found) {
  const opened = new Set([...place.querySelectorAll("details[open]")].map((one) => one.dataset.id));
  if (!found.started.length) { place.replaceChildren(); return; }
  place.replaceChildren(make("h3", {}, t("started_title")), ...found.started.slice(0, 8).map((one) => {
    const there = (one.kind === "run" ? board.runs : board.sweeps).has(one.id);
    const failed = one.code !== null && !STOPPED.includes(one.code);
    return make("div", { class: "panel start", "data-started": one.id },
      make("p", {}, there ? make("button", { type: "button", class: "plain link", onclick: () => go(one.kind, { id: one.id }) }, one.id) : one.id),
      make("p", { class: failed ? "note bad" : "note" }, one.code === null ? t("goes_on", { pid: one.pid }) : t("ended_with", { code: one.code })),
      one.output ? make("details", { open: failed || opened.has(one.id), "data-id": one.id }, make("summary", {}, t("output")), make("pre", { class: "printed" }, one.output)) : "");
  }));
}
