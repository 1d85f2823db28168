// Logs that follow what is written.
import { addView, api, board, labels, make, on, subjects, t } from "./main.js";

const LINES = 5000;

export function viewer(place, id) { // the logs of a run; call update() after each poll
  let [name, cursor, busy, follow, lines, names] = [null, "", false, true, [], []];
  const select = make("select", { "aria-label": t("log_file"), onchange: () => { name = select.value; cursor = ""; lines = []; update(); } });
  const box = make("input", { type: "checkbox", class: "follow", onchange: () => { follow = box.checked; scroll(); } });
  box.checked = true;
  const find = make("input", { type: "search", placeholder: t("find_line"), "aria-label": t("find_line"), oninput: () => show() });
  const text = make("pre", { class: "log", tabindex: 0, role: "log", "aria-live": "off" });
  const note = make("p", { class: "note" });
  text.addEventListener("scroll", () => { // who scrolls up reads: following ends, and begins again at the end
    follow = text.scrollTop + text.clientHeight >= text.scrollHeight - 8;
    box.checked = follow;
  });
  place.append(make("div", { class: "bar" }, select, find, make("label", {}, box, ` ${t("follow")}`)), note, text);
  function scroll() { if (follow) text.scrollTop = text.scrollHeight; }
  function show() {
    const words = find.value.toLowerCase();
    text.textContent = (words ? lines.filter((line) => line.toLowerCase().includes(words)) : lines).join("\n");
    scroll();
  }
  async function update() {
    if (busy || !text.isConnected) return;
    busy = true;
    try {
      const there = await api("logs", { run: id });
      if (there.logs.join() !== names.join()) {
        names = there.logs;
        name = names.includes(name) ? name : names.find((one) => one === "rank-0.log") || names[0] || null;
        select.replaceChildren(...names.map((one) => make("option", { value: one, selected: one === name }, one)));
      }
      note.textContent = name ? "" : t("no_logs");
      note.hidden = Boolean(name);
      if (!name) return;
      const part = await api("log", { run: id, name, at: cursor });
      if (part.anew) lines = [];
      if (part.cut) { note.hidden = false; note.textContent = t("cut", { file: name }); }
      cursor = part.cursor;
      if (part.text) { lines = lines.concat(part.text.replace(/\n$/, "").split("\n")).slice(-LINES); show(); } else if (part.anew) show();
    } catch (error) { note.hidden = false; note.textContent = error.message; } finally { busy = false; }
  }
  update();
  return { update };
}

export function install() {
  let [place, current, log] = [null, null, null];
  function build() {
    if (!place?.isConnected) return;
    const ids = board.chosen.length ? subjects() : subjects(50);
    if (!ids.length) { place.replaceChildren(make("p", { class: "note" }, t("nothing_chosen"))); log = null; return; }
    if (!ids.includes(current)) current = ids[0];
    const names = labels(ids);
    const select = make("select", { id: "log-run", onchange: () => { current = select.value; build(); } }, ...ids.map((id) => make("option", { value: id, selected: id === current }, `${names.get(id)} · ${board.runs.get(id).name}`)));
    const inner = make("div", { class: "panel" });
    place.replaceChildren(make("div", { class: "bar" }, make("label", {}, `${t("run")} `, select)), inner);
    log = viewer(inner, current);
  }
  addView({ name: "logs", label: "view_logs", build(main) { place = make("div"); main.append(place); build(); }, update: () => (log ? log.update() : subjects().length && build()) });
  on("chosen", build);
}
