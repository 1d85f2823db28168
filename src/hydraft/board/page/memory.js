// Planned memory of a rank by part, against the measured peak.
import { addView, api, board, bytes, dot, labels, make, on, subjects, t } from "./main.js";

const PARTS = ["weights", "adapter", "gradients", "optimizer", "activations", "logits", "cache", "buffers", "overhead"];
const SHADES = [0, 1, 2, 3, 4, 5, 6, 9, 7];

export function bars(memory) {
  if (!memory) return [make("p", { class: "note" }, t("no_plan"))];
  const most = Math.max(...memory.phases.flatMap((phase) => [phase.planned, phase.measured || 0]), 1);
  const width = (size) => `width:${(100 * size / most).toFixed(2)}%`;
  return memory.phases.flatMap((phase) => {
    const change = phase.measured ? phase.planned / phase.measured - 1 : null;
    return [
      make("div", { class: "phase" }, t(`phase_${phase.phase}`), change === null ? "" : make("b", {}, ` ${change >= 0 ? "+" : "−"}${Math.abs(100 * change).toFixed(0)} %`)),
      make("div", { class: "memory" }, make("span", {}, t("planned")), make("div", { class: "stack", role: "img", "aria-label": `${t("planned")} ${bytes(phase.planned)}` },
        ...PARTS.filter((part) => phase.parts[part]).map((part) => make("i", { class: `c${SHADES[PARTS.indexOf(part)]}`, style: width(phase.parts[part]), title: `${t(`part_${part}`)} ${bytes(phase.parts[part])}` }))), make("b", {}, bytes(phase.planned))),
      make("div", { class: "memory" }, make("span", {}, t("measured")), make("div", { class: "stack" }, phase.measured ? make("i", { class: "measured", style: width(phase.measured) }) : ""), make("b", {}, phase.measured ? bytes(phase.measured) : t("not_measured"))),
    ];
  });
}

export function key(memories) {
  const there = PARTS.filter((part) => memories.some((memory) => memory?.phases.some((phase) => phase.parts[part])));
  return make("div", { class: "legend" }, ...there.map((part) => make("span", {}, make("i", { class: `dot c${SHADES[PARTS.indexOf(part)]}` }), t(`part_${part}`))));
}

export function install() {
  let place = null;
  async function load() {
    if (!place?.isConnected) return;
    const ids = subjects(6).slice(0, 20);
    if (!ids.length) { place.replaceChildren(make("p", { class: "note" }, t("nothing_chosen"))); return; }
    let found;
    try { found = await api("memory", { run: ids }); } catch (error) { place.replaceChildren(make("p", { class: "note bad" }, error.message)); return; }
    const names = labels(ids);
    const memories = ids.map((id) => found[id]);
    place.replaceChildren(board.chosen.length ? "" : make("p", { class: "note" }, t("newest")), make("p", { class: "note" }, t(memories.some((one) => one?.gpu) ? "memory_gpu" : "memory_cpu")), key(memories),
      make("div", { class: "charts" }, ...ids.map((id, index) => make("section", { class: "panel", "data-memory": id }, make("h3", {}, dot(id, index), names.get(id)), ...bars(found[id])))));
  }
  addView({ name: "memory", label: "view_memory", build(main) { place = make("div"); main.append(place); load(); }, update: ({ runs }) => { if (subjects(6).some((id) => runs.has(id) && board.runs.get(id).ended)) load(); } });
  on("chosen", load);
}
