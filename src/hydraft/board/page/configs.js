// Settings of the chosen runs side by side, with what differs marked.
import { addView, api, board, dot, go, make, on, subjects, t } from "./main.js";

const view = { differing: true, changed: true, find: "" };

export function install() {
  let place = null;
  let found = null;
  async function load() {
    const ids = subjects(6);
    if (!ids.length) { place.replaceChildren(make("p", { class: "note" }, t("nothing_chosen"))); return; }
    try { found = await api("configs", { run: ids }); } catch (error) { place.replaceChildren(make("p", { class: "note bad" }, error.message)); return; }
    fill();
  }
  function fill() {
    if (!place?.isConnected || !found) return;
    const names = new Map(found.runs.map((id) => [id, board.runs.get(id)?.name || id]));
    const words = view.find.toLowerCase();
    const many = found.runs.length > 1;
    const rows = found.rows.filter((row) => row.key.toLowerCase().includes(words) && (!view.differing || !many || row.differs)
      && (!view.changed || row.differs || row.values.some((one) => one !== null && one !== row.default)));
    const head = make("tr", {}, make("th", { class: "word", scope: "col" }, t("setting")), make("th", { class: "word", scope: "col" }, t("default")),
      ...found.runs.map((id, index) => make("th", { class: "word", scope: "col" }, dot(id, index), make("button", { type: "button", onclick: () => go("run", { id }) }, names.get(id)))));
    place.replaceChildren(
      board.chosen.length ? "" : make("p", { class: "note" }, t("newest")),
      rows.length ? make("div", { class: "panel jobs scroll", tabindex: 0 }, make("table", { id: "configs" }, make("thead", {}, head), make("tbody", {}, ...rows.map((row) => make("tr", { class: row.differs ? "differs" : null },
        make("th", { class: "word mono", scope: "row" }, row.key), make("td", { class: "text muted" }, row.default ?? ""),
        ...row.values.map((one) => make("td", { class: "text" }, one === null ? "" : row.differs ? make("mark", {}, one) : one))))))) : make("p", { class: "note" }, t("no_settings")));
  }
  addView({
    name: "configs", label: "view_configs",
    build(main) {
      const box = (key, label) => { const one = make("input", { type: "checkbox", onchange: () => { view[key] = one.checked; fill(); } }); one.checked = view[key]; return make("label", {}, one, ` ${t(label)}`); };
      const find = make("input", { type: "search", placeholder: t("find_setting"), "aria-label": t("find_setting"), oninput: () => { view.find = find.value; fill(); } });
      place = make("div");
      main.append(make("div", { class: "bar" }, find, box("differing", "only_differing"), box("changed", "hide_defaults")), place);
      load();
    },
    update: ({ runs }) => { if (subjects(6).some((id) => runs.has(id)) && found?.runs.join() !== subjects(6).join()) load(); },
  });
  on("chosen", () => { if (place?.isConnected) load(); });
}
