// The list of episodes, with filters in the address: #episodes?split=valid&success=no

const FILTERS = [
  ["run", "run", (e) => e.of.run === null ? "" : String(e.of.run)],
  ["kind", "kind", (e) => e.of.kind],
  ["update", "update", (e) => e.of.update === null ? "" : String(e.of.update)],
  ["split", "split", (e) => e.of.split],
  ["type", "type", (e) => e.type],
  ["stop", "ended by", (e) => e.stop],
  ["success", "solved", (e) => e.success ? "yes" : "no"],
  ["invalid", "invalid turns", (e) => e.invalid ? "some" : "none"],
];
const PAGE = 300;

function filtered(query) {
  return D.episodes.filter((e) => FILTERS.every(([key, , value]) => !query.has(key) || value(e) === query.get(key))
    && (!query.get("task") || e.task.toLowerCase().includes(query.get("task").toLowerCase())));
}

function withFilter(query, key, value) {
  const next = new URLSearchParams(query);
  if (value === "") next.delete(key);
  else next.set(key, value);
  return `#episodes?${next}`;
}

function episodesView(query) {
  const chosen = filtered(query);
  const fields = FILTERS.map(([key, label, value]) => {
    const options = [...new Set(D.episodes.map(value))].filter((one) => one !== "");
    options.sort((a, b) => a.localeCompare(b, "en", {numeric: true}));
    if (options.length < 2) return null;
    const named = options.map((one) => [one, key === "run" ? D.runs[Number(one)].label : one]);
    return choice(label, [["", "all"], ...named], query.get(key) || "", (one) => go(withFilter(query, key, one)));
  });
  const search = el("input", {type: "search", value: query.get("task") || "", placeholder: "text in its id",
    onchange: (event) => go(withFilter(query, "task", event.target.value))});
  const solved = chosen.filter((e) => e.success).length;
  const count = chosen.length ? `${plural(chosen.length, "episode")} of ${D.episodes.length.toLocaleString("en")}, ${percent(solved / chosen.length)} solved` : "No episode has these properties.";
  const shown = Math.max(PAGE, Number(query.get("shown")) || 0);
  const rows = chosen.slice(0, shown).map((e) => el("tr", {class: "row", "data-episode": e.number},
    el("td", {class: "number"}, link(`#episode/${e.number}`, e.number)),
    el("td", {class: "id"}, e.task),
    el("td", {}, runLabel(e.of)),
    el("td", {}, `${e.of.update === null ? "" : `${e.of.update}, `}${e.of.kind === "training" ? "training" : e.of.split}`),
    el("td", {class: e.success ? "good" : "bad"}, e.stop),
    el("td", {class: "number"}, e.turns.length),
    el("td", {class: "number"}, e.invalid || ""),
    el("td", {class: "number"}, short(e.reward)),
    el("td", {}, link(`#group/${e.record}/${e.group}`, `group ${e.group}`))));
  const body = table(["#", "task", "run", "update", "ended by", "turns", "invalid", "return", "attempts"], rows, {class: "episodes"});
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr.row");
    if (row && !event.target.closest("a") && !String(getSelection())) go(`#episode/${row.dataset.episode}`);
  });
  return [
    el("h1", {}, "Episodes"),
    D.episodes.length ? null : el("p", {}, "No episodes were recorded (trainer.record_every=0), or the run has not finished a batch yet."),
    el("form", {class: "filters", onsubmit: (event) => event.preventDefault()}, fields, el("label", {class: "field"}, el("span", {}, "task"), search)),
    el("p", {id: "count", role: "status"}, count),
    rows.length ? body : null,
    chosen.length > shown ? link(withFilter(query, "shown", String(shown + 5 * PAGE)), `show more of the ${chosen.length - shown} others`) : null,
  ];
}
