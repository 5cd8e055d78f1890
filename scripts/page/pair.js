// Two runs, or two checkpoints of one, on the same tasks: who solves what, and one task side by side.

const QUADRANTS = [["both", "both solve"], ["a", "only A solves"], ["b", "only B solves"], ["none", "none solves"]];

function outcomes(record) {
  const tasks = new Map();
  for (const e of record.episodes) tasks.set(e.task, [...(tasks.get(e.task) || []), e]);
  return tasks;
}

const solves = (episodes) => 2 * episodes.filter((e) => e.success).length > episodes.length;

function pairView(query) {
  const usable = D.records.filter((record) => record.count);
  if (usable.length < 2) return [el("h1", {}, "Two runs"), el("p", {}, "There is only one file of episodes here; give the page two runs, or a run with two evaluations.")];
  const wanted = query.get("task");
  const [a, b] = chosenPair(usable, query, wanted);
  const [left, right] = [outcomes(a), outcomes(b)];
  const shared = [...left.keys()].filter((task) => right.has(task)).sort();
  const kind = (task) => solves(left.get(task)) ? (solves(right.get(task)) ? "both" : "a") : solves(right.get(task)) ? "b" : "none";
  const lists = Object.fromEntries(QUADRANTS.map(([key]) => [key, shared.filter((task) => kind(task) === key)]));
  const address = (changes) => {
    const next = new URLSearchParams({a: a.number, b: b.number, ...(wanted ? {task: wanted} : {}), ...changes});
    return `#pair?${next}`;
  };
  const options = usable.map((record) => [record.number, recordLabel(record)]);
  const page = [
    el("h1", {}, "Two runs on the same tasks"),
    el("div", {class: "filters"}, choice("A", options, a.number, (one) => go(address({a: one}))), choice("B", options, b.number, (one) => go(address({b: one})))),
  ];
  if (!shared.length) return [...page, el("p", {}, `They share no task: A played ${plural(left.size, "task")} of ${a.split}, B ${plural(right.size, "task")} of ${b.split}.`)];
  const cell = (key) => el("td", {}, link(address({list: key}), String(lists[key].length)));
  page.push(el("table", {class: "quadrants"}, el("caption", {}, `${plural(shared.length, "shared task")}; a task counts as solved if most attempts solve it`),
    el("tr", {}, el("td"), el("th", {scope: "col"}, "B solves"), el("th", {scope: "col"}, "B does not")),
    el("tr", {}, el("th", {scope: "row"}, "A solves"), cell("both"), cell("a")),
    el("tr", {}, el("th", {scope: "row"}, "A does not"), cell("b"), cell("none"))));
  if (wanted && left.has(wanted) && right.has(wanted)) page.push(sideBySide(left.get(wanted)[0], right.get(wanted)[0], wanted));
  const only = query.get("list");
  for (const [key, title] of QUADRANTS) {
    if (only && only !== key) continue;
    page.push(el("h2", {}, `${title} (${lists[key].length})`),
      lists[key].length ? el("ul", {class: "tasks"}, lists[key].map((task) => el("li", {}, link(address({task, list: key}), task)))) : el("p", {class: "dim"}, "no task"));
  }
  return page;
}

/** The records that the address names; otherwise two that share the most tasks, of two runs if there are. */
function chosenPair(usable, query, wanted) {
  const named = (key) => usable.filter((record) => query.has(key) && record.number === Number(query.get(key)));
  const candidates = (key) => named(key).length ? named(key) : usable.filter((r) => !wanted || r.episodes.some((e) => e.task === wanted));
  const tasks = new Map(usable.map((record) => [record, new Set(record.episodes.map((e) => e.task))]));
  let best = [usable[0], usable[1]], most = -1;
  for (const a of candidates("a")) {
    for (const b of candidates("b")) {
      if (a === b) continue;
      const shared = [...tasks.get(a)].filter((task) => tasks.get(b).has(task)).length;
      const value = shared + (a.run === b.run ? 0 : 0.5) + (a.split === b.split ? 0.25 : 0);
      if (value > most) [best, most] = [[a, b], value];
    }
  }
  return best;
}

function sideBySide(a, b, task) {
  const rows = [];
  const differs = firstDivergence([a, b]);
  for (let t = 0; t < Math.max(a.turns.length, b.turns.length); t++) {
    rows.push(el("tr", {class: t === differs ? "diverges" : null}, el("th", {scope: "row"}, String(t + 1)), [a, b].map((e) => {
      const turn = e.turns[t];
      if (!turn) return el("td", {class: "empty"});
      return el("td", {}, t === differs ? el("span", {class: "mark"}, "first difference") : null, said(text(turn.o), "observation"),
        el("b", {}, link(`#episode/${e.number}/${t + 1}`, text(turn.a) || "(none)")), turn.s === "ok" ? null : el("span", {class: "bad"}, ` ${turn.s}`));
    })));
  }
  const heads = ["turn", ...[["A", a], ["B", b]].map(([name, e]) => el("span", {}, `${name}: `, link(`#episode/${e.number}`, `episode ${e.number}`), " ",
    el("span", {class: e.success ? "good" : "bad"}, e.stop)))];
  return el("section", {}, el("h2", {}, task), table(heads, rows, {class: "sides"}));
}
