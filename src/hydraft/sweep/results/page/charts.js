"use strict";
// Elements and charts that report.html of a sweep and the board's page share. Everything from a run is inserted by textContent: nothing
// in a config or an error is read as HTML.
const Charts = (() => {
const drawn = []; // charts on the page, redrawn when the colours change

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function choose(label, names, change) {
  const list = make("select", { onchange: () => change(list.selectedIndex) }, ...names.map((name) => make("option", {}, name)));
  return make("label", {}, `${label} `, list);
}

async function copy(text, button, label = "Copy", done = "Copied") {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page opened from a file may have no access to the clipboard
    const area = make("textarea", { style: "position:fixed;opacity:0" });
    area.value = text;
    (document.querySelector("dialog[open]") || document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = done;
  setTimeout(() => { button.textContent = label; }, 1500);
}

function command(text) {
  const button = make("button", { type: "button", class: "copy", onclick: () => copy(text, button) }, "Copy");
  return make("div", { class: "command" }, make("pre", {}, text), button);
}

// ---- charts -------------------------------------------------------------------------------------------------------

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function painted(value) { // a copy in which colour variables are replaced
  if (typeof value === "string") return value.startsWith("var:") ? colour(value.slice(4)) : value;
  if (Array.isArray(value)) return value.map(painted);
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, painted(v)]));
  return value;
}

function axis(given = {}) {
  const title = given.title ? { title: { text: given.title, standoff: 10 } } : {};
  const lines = { gridcolor: colour("grid"), linecolor: colour("grid"), zerolinecolor: colour("grid"), automargin: true };
  return { ...lines, ...given, ...title };
}

function layout(chart) {
  return painted({
    margin: chart.layout.xaxis?.side === "top" ? { l: 12, r: 12, t: 36, b: 8 } : { l: 56, r: 18, t: 12, b: 48 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
    hoverlabel: { align: "left", bgcolor: colour("panel"), bordercolor: colour("grid"), font: { color: colour("ink") } },
    hovermode: "closest",
    showlegend: false,
    height: chart.height,
    ...chart.layout,
    xaxis: axis(chart.layout.xaxis),
    yaxis: axis(chart.layout.yaxis),
  });
}

function traces(chart, way) {
  const list = painted(chart.traces);
  if (way) list.forEach((trace, index) => {
    const shade = painted(way.colours[index]);
    trace.line = { ...trace.line, color: shade };
    trace.marker = { ...trace.marker, color: shade };
  });
  return list;
}

function legend(way) {
  if (!way || !way.legend.length) return null;
  const [first, last] = [way.legend[0], way.legend[way.legend.length - 1]];
  if (way.ramp) {
    const ramp = make("i", { class: "ramp" });
    ramp.style.background = `linear-gradient(90deg, ${way.stops.join(", ")})`;
    return make("div", { class: "legend" }, first[0], ramp, last[0]);
  }
  return make("div", { class: "legend" }, ...way.legend.map(([name, shade]) => {
    const line = make("i");
    line.style.background = painted(shade);
    return make("span", {}, line, name);
  }));
}

function draw(chart, open = () => {}) { // `open` is called with the name of a job whose mark is clicked
  const plot = make("div", { class: "plot" });
  if (chart.least_width) plot.style.minWidth = `${chart.least_width}px`;
  const key = make("div");
  const ways = chart.recolor || [];
  let way = ways[0];
  const show = () => {
    key.replaceChildren(...[legend(way)].filter(Boolean));
    if (window.Plotly) Plotly.react(plot, traces(chart, way), layout(chart), { displayModeBar: false, responsive: true });
  };
  const bar = ways.length > 1 || (way && way.legend.length)
    ? make("div", { class: "bar" }, ways.length > 1 ? choose("coloured by", ways.map((w) => w.name), (i) => { way = ways[i]; show(); })
      : make("span", {}, `coloured by ${way.name}`), key)
    : null;
  const box = make("section", { class: "panel chart" }, make("h3", {}, chart.title), make("p", { class: "note" }, chart.note), bar,
    make("div", { class: "scroll" }, plot));
  const begin = () => {
    show();
    if (!window.Plotly) return;
    plot.on("plotly_click", ({ points: [point] }) => {
      const name = typeof point.customdata === "string" ? point.customdata : point.data.meta;
      if (name !== undefined) open(name);
    });
  };
  return { box, begin, show };
}

function section(part, place, open) {
  const choices = [...new Set(part.charts.map((chart) => chart.choice))];
  const grid = make("div", { class: "charts" });
  const turn = (index) => {
    for (const old of drawn.filter((one) => grid.contains(one.box))) drawn.splice(drawn.indexOf(old), 1);
    const now = part.charts.filter((chart) => chart.choice === choices[index]).map((chart) => draw(chart, open));
    grid.replaceChildren(...now.map((one) => one.box));
    drawn.push(...now);
    now.forEach((one) => one.begin());
  };
  const bar = choices.length > 1 ? make("div", { class: "bar" }, choose(part.select, choices, turn)) : null;
  place.append(make("h2", {}, part.title), ...[bar].filter(Boolean), grid);
  turn(0);
}

return { make, choose, copy, command, colour, draw, drawn, section };
})();
