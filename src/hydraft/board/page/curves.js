// Curves of the chosen runs over each other. The points of a run are asked for once, and then what is new.
import { addView, api, board, dot, go, labels, LIVE, make, on, slotOf, subjects, t, withPlotly } from "./main.js";

const FIRST = ["loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second"];
const UNDRAWN = ["epoch", "tokens"];
const POINTS = 1000; // of a line on the page
const view = { axis: "step", smooth: 0, log: false, ...JSON.parse(localStorage.getItem("curves") || "{}") };
const series = new Map(); // by run: { cursor, steps, values, events, moved }

let reading = Promise.resolve();
export function load(ids) { // whether there is anything new; one request after the other, since each begins where the last one ended
  reading = reading.catch(() => {}).then(() => read(ids));
  return reading;
}

async function read(ids) {
  const wanted = ids.filter((id) => {
    const run = board.runs.get(id);
    const known = series.get(id);
    return run && (!known || known.more || known.moved !== run.moved || LIVE.includes(run.state));
  }).slice(0, 200);
  if (!wanted.length) return false;
  const moved = new Map(wanted.map((id) => [id, board.runs.get(id).moved]));
  const found = await api("curves", { run: wanted, at: wanted.map((id) => series.get(id)?.cursor || "") });
  let news = false;
  for (const id of wanted) {
    const part = found[id];
    if (!part || part.error) continue;
    let known = series.get(id);
    if (!known || part.anew) { known = { steps: [], values: {}, events: [] }; series.set(id, known); news = true; }
    news ||= part.steps.length > 0;
    for (const name of new Set([...Object.keys(known.values), ...Object.keys(part.values)])) {
      known.values[name] = [...(known.values[name] || Array(known.steps.length).fill(null)), ...(part.values[name] || Array(part.steps.length).fill(null))];
    }
    known.steps = known.steps.concat(part.steps);
    known.events = known.events.concat(part.events);
    Object.assign(known, { cursor: part.cursor, more: part.more, moved: moved.get(id) });
  }
  return news;
}

function places(known) { // of each line: the step, its tokens, or the training time up to it
  if (view.axis === "step") return known.steps;
  const [tokens, speed] = [known.values.tokens || [], known.values.tokens_per_second || []];
  let [before, time] = [0, 0];
  return known.steps.map((_, index) => {
    if (tokens[index] !== null && tokens[index] !== undefined) {
      if (speed[index]) time += Math.max(0, tokens[index] - before) / speed[index];
      before = tokens[index];
    }
    return view.axis === "tokens" ? before : time;
  });
}

function points(known, name) {
  const xs = places(known);
  const found = [];
  known.values[name]?.forEach((y, index) => { if (y !== null) found.push([xs[index], y]); });
  if (view.smooth > 0 && found.length > 2 && name !== "learning_rate" && !name.startsWith("eval_")) { // as TensorBoard does, without its bias at the start
    let [last, weight] = [0, 0];
    for (const point of found) {
      last = view.smooth * last + (1 - view.smooth) * point[1];
      weight = view.smooth * weight + (1 - view.smooth);
      point[1] = last / weight;
    }
  }
  return thinned(found);
}

function thinned(found) { // the lowest and the highest point of each stretch
  if (found.length <= POINTS) return found;
  const stretch = Math.ceil(found.length / (POINTS / 2));
  const kept = [];
  for (let at = 0; at < found.length; at += stretch) {
    let [low, high] = [at, at];
    for (let i = at; i < Math.min(at + stretch, found.length); i += 1) { if (found[i][1] < found[low][1]) low = i; if (found[i][1] > found[high][1]) high = i; }
    kept.push(...[...new Set([low, high])].sort((a, b) => a - b).map((i) => found[i]));
  }
  if (kept.at(-1) !== found.at(-1)) kept.push(found.at(-1));
  return kept;
}

function title(name) {
  const text = t(`title_${name}`);
  return text !== `title_${name}` ? text : name.replace(/^eval_/, "").replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());
}

function chart(name, ids) {
  const names = labels(ids);
  const lines = ids.map((id, index) => ({ id, index, points: series.has(id) ? points(series.get(id), name) : [] })).filter((line) => line.points.length);
  const escape = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  return {
    title: title(name), note: "", height: 300,
    traces: lines.map(({ id, index, points: found }) => ({
      type: "scatter", mode: found.length < 4 || name.startsWith("eval_") ? "lines+markers" : "lines", x: found.map(([x]) => x), y: found.map(([, y]) => y),
      name: escape(names.get(id)), meta: id, line: { width: 1.8, color: `var:c${slotOf(id, index)}` }, marker: { size: 5, color: `var:c${slotOf(id, index)}` },
      hovertemplate: "%{y:.4~g}  %{fullData.name}<extra></extra>",
    })),
    layout: {
      hovermode: "x unified", xaxis: { title: t(`x_${view.axis}`), hoverformat: ",~r" }, uirevision: view.axis + view.log,
      yaxis: view.log ? { type: "log", exponentformat: "power" } : { exponentformat: "e" },
    },
  };
}

export function panel(place, choose, most = 5, limit = 100) { // charts of the runs that choose() names; call update() after each poll
  const charts = new Map();
  const grid = make("div", { class: "charts" });
  const more = make("div", { class: "charts" });
  const rest = make("details", { hidden: true }, make("summary", {}), more);
  rest.addEventListener("toggle", () => draw());
  const note = make("p", { class: "note" }, t("loading"));
  const events = make("div");
  place.append(note, events, grid, rest);
  let key = "";
  function draw() {
    if (!grid.isConnected) return;
    const ids = choose();
    const found = new Set(ids.flatMap((id) => Object.entries(series.get(id)?.values || {}).filter(([, values]) => values.some((one) => one !== null)).map(([name]) => name)));
    const rest_ = [...found].filter((name) => !FIRST.includes(name) && !UNDRAWN.includes(name)).sort();
    const names = [...FIRST.filter((name) => found.has(name)), ...rest_.filter((name) => name !== "eval_empty"), ...rest_.filter((name) => name === "eval_empty")].slice(0, limit);
    note.textContent = names.length ? "" : t("no_curves");
    note.hidden = names.length > 0;
    const said = ids.flatMap((id, index) => (series.get(id)?.events || []).map((one) => make("p", { class: "note bad" }, dot(id, index), t("diverged_at", one))));
    events.replaceChildren(...said.slice(0, 10));
    if (names.join() !== key) {
      key = names.join();
      for (const name of charts.keys()) if (!names.includes(name)) { charts.get(name).drawing.box.remove(); charts.delete(name); }
    }
    names.forEach((name, index) => {
      const now = chart(name, ids);
      const inside = index < most ? grid : more;
      let one = charts.get(name);
      if (!one) {
        one = { data: now, drawing: Charts.draw(now, (id) => go("run", { id })), begun: false };
        one.drawing.box.dataset.metric = name;
        charts.set(name, one);
        Charts.drawn.push({ box: one.drawing.box, show: () => { if (one.begun) one.drawing.show(); } });
      } else Object.assign(one.data, now);
      if (inside.children[inside === grid ? index : index - most] !== one.drawing.box) inside.insertBefore(one.drawing.box, inside.children[inside === grid ? index : index - most] || null);
      if (inside === more && !rest.open) return;
      if (one.begun) one.drawing.show(); else { one.begun = true; one.drawing.begin(); }
    });
    rest.hidden = names.length <= most;
    rest.firstChild.textContent = t("more_charts", { count: names.length - most });
  }
  let busy = false;
  async function update(force = false) {
    if (busy) return;
    busy = true;
    try {
      await withPlotly();
      if (await load(choose()) || force) draw();
    } catch (error) { note.hidden = false; note.textContent = String(error.message || error); } finally { busy = false; }
  }
  update(true);
  return { update, draw };
}

export function controls(redraw) {
  const keep = () => { localStorage.setItem("curves", JSON.stringify(view)); redraw(); };
  const axes = ["step", "tokens", "time"];
  const axis = make("select", { id: "axis", onchange: () => { view.axis = axis.value; keep(); } }, ...axes.map((name) => make("option", { value: name, selected: name === view.axis }, t(`axis_${name}`))));
  const shown = make("output", {}, view.smooth.toFixed(2));
  const smooth = make("input", { id: "smooth", type: "range", min: 0, max: 0.99, step: 0.01, value: view.smooth, oninput: () => { view.smooth = Number(smooth.value); shown.textContent = view.smooth.toFixed(2); keep(); } });
  const log = make("input", { id: "log", type: "checkbox", onchange: () => { view.log = log.checked; keep(); } });
  log.checked = view.log;
  return make("div", { class: "bar" }, make("label", {}, `${t("axis")} `, axis), make("label", {}, `${t("smooth")} `, smooth, " ", shown), make("label", {}, log, ` ${t("log")}`));
}

export function legend(ids) {
  const names = labels(ids);
  return ids.map((id, index) => make("span", { class: "chip" }, dot(id, index), make("button", { type: "button", class: "plain", title: id, onclick: () => go("run", { id }) }, names.get(id))));
}

export function install() {
  let charts = null;
  let place = null;
  const refresh = () => {
    if (!place?.isConnected) return;
    place.replaceChildren(...(board.chosen.length ? [] : [make("p", { class: "note" }, subjects().length ? t("newest") : t("nothing_chosen")), make("div", { class: "chosen" }, ...legend(subjects()))]));
  };
  addView({
    name: "curves", label: "view_curves",
    build(main) {
      place = make("div");
      main.append(controls(() => charts.draw()), place);
      refresh();
      charts = panel(main, () => subjects(), 6);
    },
    update: ({ runs }) => { if (runs.size) refresh(); charts.update(); },
  });
  on("chosen", () => { if (place?.isConnected) { refresh(); charts.update(true); } });
}
