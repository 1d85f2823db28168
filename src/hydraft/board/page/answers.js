// Answers to the same held-out records: of one run before and after training, or of two runs.
import { addView, api, board, labels, make, on, subjects, t } from "./main.js";

export function install() {
  let place = null;
  let different = false;
  let [first, second] = [null, null];
  function options(chosen, ids, names, none) {
    return [...(none ? [make("option", { value: "", selected: !chosen }, none)] : []), ...ids.map((id) => make("option", { value: id, selected: id === chosen }, names.get(id)))];
  }
  async function load() {
    if (!place?.isConnected) return;
    const ids = board.chosen.length ? subjects() : subjects(20);
    if (!ids.length) { place.replaceChildren(make("p", { class: "note" }, t("nothing_chosen"))); return; }
    if (!ids.includes(first)) { first = ids[0]; second = board.chosen.length > 1 ? ids[1] : null; }
    if (second && !ids.includes(second)) second = null;
    const names = labels(ids);
    const box = make("input", { type: "checkbox", id: "different", onchange: () => { different = box.checked; load(); } });
    box.checked = different;
    const one = make("select", { id: "first", onchange: () => { first = one.value; load(); } }, ...options(first, ids, names));
    const two = make("select", { id: "second", onchange: () => { second = two.value || null; load(); } }, ...options(second, ids.filter((id) => id !== first), names, t("before_after")));
    const bar = make("div", { class: "bar" }, make("label", {}, `${t("first")} `, one), make("label", {}, `${t("second")} `, two), make("label", {}, box, ` ${t("only_different")}`));
    let found;
    try { found = await api("answers", { run: second ? [first, second] : [first] }); } catch (error) { place.replaceChildren(bar, make("p", { class: "note bad" }, error.message)); return; }
    if (!found.rows.length) { place.replaceChildren(bar, make("p", { class: "note" }, t("no_answers"))); return; }
    const differs = (row) => row.answers[0].text.trim() !== row.answers[1].text.trim();
    const rows = found.rows.filter((row) => !different || differs(row));
    const heads = [0, 1].map((index) => make("th", { class: "word", scope: "col" }, second ? names.get([first, second][index]) : t(index ? "after" : "before"),
      make("small", {}, ` ${t("at_step", { step: found.at[index] })} · ${t("right", { right: found.rows.filter((row) => row.answers[index].right).length, all: found.rows.length })}`)));
    place.replaceChildren(bar, make("p", { class: "note" }, t("answers_differ", { count: found.rows.filter(differs).length })),
      make("div", { class: "panel jobs scroll", tabindex: 0 }, make("table", { id: "answers" }, make("thead", {}, make("tr", {}, make("th", { class: "word", scope: "col" }, t("question")), make("th", { class: "word", scope: "col" }, t("reference")), ...heads)),
        make("tbody", {}, ...rows.map((row) => make("tr", {}, make("td", { class: "text" }, row.prompt), make("td", { class: "text" }, row.reference),
          ...row.answers.map((one) => make("td", { class: `text ${one.right ? "good" : "bad"}` }, `${one.right ? "✓" : "✗"} ${one.text}`))))))));
  }
  addView({
    name: "answers", label: "view_answers",
    build(main) { place = make("div"); main.append(place); first = null; load(); },
    update: ({ runs }) => { if ([first, second].some((id) => runs.has(id))) { const run = board.runs.get(first); if (run && (run.state === "completed" || run.state === "running")) load(); } },
  });
  on("chosen", () => { first = null; load(); });
}
