// Runs: their curves, with a band over the seeds of equal settings, and what differs between their settings.

const COLORS = ["#2f6fde", "#d9660f", "#1f9d6b", "#a24bcf", "#c63a56", "#7a7f1e", "#0e8fa8", "#8a6243"];
const FIRST = ["rollout/success", "rollout/return", "rollout/turns", "rollout/invalid", "train/loss", "train/entropy"];
let charts = [];

function groupColor(number) {
  return COLORS[number % COLORS.length];
}

function metricNames() {
  const names = new Set(D.runs.flatMap((run) => Object.keys(run.metrics)));
  const evaluated = [...names].filter((name) => /^eval\/[^/]+\/[^/]+\/success$/.test(name)).sort();
  return {shown: [...evaluated, ...FIRST.filter((name) => names.has(name))], all: [...names].sort()};
}

/** Of a group of runs: updates, and the mean, lowest and highest value at each. */
function overSeeds(runs, metric) {
  const at = new Map();
  for (const run of runs) {
    const [updates, values] = D.runs[run].metrics[metric] || [[], []];
    updates.forEach((update, i) => at.set(update, [...(at.get(update) || []), values[i]]));
  }
  const updates = [...at.keys()].sort((a, b) => a - b);
  const each = updates.map((update) => at.get(update));
  return {
    updates,
    mean: each.map((values) => values.reduce((a, b) => a + b, 0) / values.length),
    low: each.map((values) => Math.min(...values)),
    high: each.map((values) => Math.max(...values)),
  };
}

/** The ends of an axis for values from `low` to `high`. */
function room(low, high) {
  const margin = (high - low) * 0.08 || Math.abs(high) * 0.1 || 0.5;
  return [low - margin, high + margin];
}

function chart(metric) {
  const groups = D.groups.map((group, number) => ({...overSeeds(group.runs, metric), ...group, number}))
    .filter((group) => group.updates.length);
  const holder = el("figure", {class: "chart"}, el("figcaption", {}, metric));
  if (!groups.length) return holder;
  const updates = [...new Set(groups.flatMap((group) => group.updates))].sort((a, b) => a - b);
  const data = [updates];
  const series = [{label: "update"}];
  const bands = [];
  for (const group of groups) {
    const place = new Map(group.updates.map((update, i) => [update, i]));
    const color = groupColor(group.number);
    const column = (values) => updates.map((update) => place.has(update) ? values[place.get(update)] : null);
    const points = group.updates.length < 12;
    series.push({label: group.label, stroke: color, width: 2, spanGaps: true, points: {show: points, size: 5}});
    data.push(column(group.mean));
    if (group.runs.length > 1) {
      const edge = {stroke: "transparent", width: 0, spanGaps: true, points: {show: false}};
      series.push({...edge, label: `${group.label}, highest`}, {...edge, label: `${group.label}, lowest`});
      data.push(column(group.high), column(group.low));
      bands.push({series: [data.length - 2, data.length - 1], fill: `${color}33`});
    }
  }
  const style = getComputedStyle(document.documentElement);
  const axis = {stroke: style.getPropertyValue("--text"), grid: {stroke: style.getPropertyValue("--line"), width: 1},
    ticks: {stroke: style.getPropertyValue("--line")}, font: "12px system-ui"};
  const box = el("div", {role: "img", "aria-label": `${metric}: ${groups.map((g) => `${g.label} ends at ${short(g.mean.at(-1))}`).join(", ")}`});
  holder.append(box);
  charts.push({box, draw(width) {
    return new uPlot({width, height: 210, series, bands, legend: {show: false}, cursor: {drag: {x: true, y: false}},
      scales: {x: {time: false}, y: {range: (_, low, high) => room(low, high)}}, axes: [{...axis, size: 32, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000]}, {...axis, size: 58}]}, data, box);
  }});
  return holder;
}

/** Draw the charts at the width they have now. */
function drawCharts() {
  for (const one of charts) {
    const width = Math.floor(one.box.clientWidth);
    if (!width || width === one.width) continue;
    one.plot?.destroy();
    one.width = width;
    one.plot = one.draw(width);
  }
}

function runsView(query) {
  charts = [];
  const {shown, all} = metricNames();
  const more = query.get("metric");
  const wanted = more && !shown.includes(more) ? [more, ...shown] : shown;
  const legend = el("ul", {class: "legend"}, D.groups.map((group, number) => group.runs.some((run) => Object.keys(D.runs[run].metrics).length) &&
    el("li", {}, el("span", {class: "swatch", style: {"background-color": groupColor(number)}}), group.label,
      el("span", {class: "dim"}, ` ${plural(group.runs.length, "run")}`))));
  const rows = D.runs.map((run) => {
    const [, values] = run.metrics["rollout/success"] || [[], []];
    const last = run.result ? `${percent(run.result.rate)} (${percent(run.result.low)} – ${percent(run.result.high)})`
      : values.length ? percent(values.at(-1)) : "–";
    const number = D.runs.indexOf(run);
    const kept = D.episodes.filter((e) => e.of.run === number).length;
    return [run.label, run.kind, String(values.length || "–"), last,
      kept ? link(`#episodes?run=${number}`, plural(kept, "episode")) : "none recorded", run.folder];
  });
  const page = [el("h1", {}, "Runs")];
  if (!D.runs.length) return [...page, el("p", {}, "There are no runs here, only episodes.")];
  page.push(table(["run", "kind", "updates", "success, last", "episodes", "folder"], rows));
  if (all.length) {
    page.push(el("h2", {}, "Curves"),
      D.groups.some((group) => group.runs.length > 1) ? el("p", {class: "dim"}, "A line is the mean over the runs of equal settings, its band their range. Drag to zoom, double-click to go back.") : null,
      legend,
      choice("another metric", [["", "choose …"], ...all.map((name) => [name, name])], more || "", (name) => go(`#runs?metric=${encodeURIComponent(name)}`)),
      el("div", {class: "charts"}, wanted.map(chart)));
  }
  const keys = Object.keys(D.differences);
  page.push(el("h2", {}, "Settings that differ"));
  page.push(keys.length ? table(["setting", ...D.runs.map((run) => run.label)],
    keys.map((key) => [el("code", {}, key), ...D.differences[key].map((value) => el("code", {}, value === null ? "–" : String(value)))]))
    : el("p", {}, D.runs.length > 1 ? "None: these runs differ at most in their seed." : "There is one run."));
  return page;
}
