// How an advantage was computed: the steps that lead to it, with their numbers, so that a person can check them.

const FUNCTIONS = new Set(["where", "min", "max", "abs", "exp", "log", "sqrt", "measured", "zero", "next", "next_where",
  "before", "tokens_sum", "tokens_last", "n", "sum", "mean", "std", "pstd", "lowest", "highest", "second", "first"]);
const MEMBERS = 300; // shown of a group

function namesIn(formula) {
  return [...new Set((formula.match(/[A-Za-z_]\w*(?!\w*\()/g) || []).filter((name) => !FUNCTIONS.has(name)))];
}

/** The steps that `last` needs, in their order. */
function stepsFor(steps, last) {
  const needed = new Set();
  const visit = (name) => {
    const step = steps.find((one) => one.name === name);
    if (!step || needed.has(name)) return;
    needed.add(name);
    for (const other of [...namesIn(step.formula), step.over, step.counted]) if (other) visit(other);
  };
  visit(last);
  return steps.filter((step) => needed.has(step.name));
}

/** The formula with numbers in place of names. */
function withNumbers(step, place) {
  const constants = step.constants || {};
  const number = (name) => {
    if (name in constants) return short(constants[name]);
    if (step.over) return null;
    const value = valueAt(name, place);
    if (value === null) return "not measured";
    return typeof value === "number" ? (value < 0 ? `(${short(value)})` : short(value)) : null;
  };
  let formula = step.formula;
  if (!step.over) {
    const next = follower(place);
    formula = formula.replace(/\bnext\((\w+)(?:, (\w+))?\)/g, (whole, name, after) => {
      const value = next ? valueAt(name, next) : after ? (valueAt(after, place) ?? Number(after)) : 0;
      return value === undefined || Number.isNaN(value) ? whole : value === null ? "not measured" : `[next: ${short(value)}]`;
    });
  }
  return formula.replace(/[A-Za-z_]\w*/g, (name) => FUNCTIONS.has(name) ? name : number(name) ?? name);
}

/** The places that a step over a group reads. */
function membersOf(step, place) {
  const record = place.e.of;
  const all = placesOf(record, step.of === "tokens");
  const counts = (other) => !step.counted || valueAt(step.counted, other) > 0;
  if (step.over === "batch") return all.filter(counts);
  if (step.over === "episode") return all.filter((other) => other.e === place.e && counts(other));
  if (step.over === "task") return all.filter((other) => other.e.group === place.e.group && counts(other));
  const number = valueAt(step.over, place);
  return all.filter((other) => valueAt(step.over, other) === number && counts(other));
}

function placeName({e, t, k}) {
  return `episode ${e.number}, turn ${t + 1}${k === null ? "" : `, token ${k + 1}`}`;
}

function memberTable(step, place) {
  const members = membersOf(step, place);
  const columns = namesIn(step.formula).filter((name) => !(name in (step.constants || {})));
  const rows = members.slice(0, MEMBERS).map((other) => {
    const own = other.e === place.e && other.t === place.t && other.k === place.k;
    return el("tr", {class: own ? "own" : null},
      el("td", {}, link(`#episode/${other.e.number}/${other.t + 1}`, placeName(other))),
      columns.map((name) => el("td", {class: "number", title: String(valueAt(name, other) ?? "")}, short(valueAt(name, other)))));
  });
  const over = {batch: "the batch", episode: "the episode", task: "the attempts at the task"}[step.over] || step.over;
  const counted = step.counted === "first" ? ", the first turn of each episode" : step.counted ? `, where ${step.counted}` : "";
  const more = members.length > MEMBERS ? `, of which ${MEMBERS} are shown` : "";
  return el("details", {open: members.length <= 8},
    el("summary", {}, `${plural(members.length, step.of === "tokens" ? "token" : "turn")} of ${over}${counted}${more}`),
    table(["member", ...columns], rows, {class: "members"}));
}

/** The explanation of the number at a place. */
function explanation(episode, t, k) {
  const steps = episode.of.steps;
  const asTokens = "advantage" in episode.ofTokens;
  const title = el("h3", {}, `Why ${signed(advantageAt(episode, t, k))}: `, placeName({e: episode, t, k: asTokens ? k : null}));
  if (!steps.length) {
    const learned = advantageAt(episode, t, k) !== null;
    const why = learned ? "This record does not say how the advantage was computed: it is of an older version, or the method does not name its steps."
      : "No method learned from this episode, so it has no advantage.";
    return el("section", {class: "explain", "aria-live": "polite"}, title, el("p", {}, why));
  }
  if (!("advantage" in episode.ofTurns) && !asTokens) {
    return el("section", {class: "explain", "aria-live": "polite"}, title,
      el("p", {}, "A fault of the environment ended this episode, so the method did not learn from it."));
  }
  const list = el("ol", {class: "steps"});
  for (const step of stepsFor(steps, "advantage")) {
    const place = {e: episode, t, k: step.of === "tokens" ? k ?? 0 : null};
    const value = valueAt(step.name, place);
    const numbers = step.formula ? withNumbers(step, place) : "";
    list.append(el("li", {},
      el("div", {class: "step"}, el("b", {}, step.name), " = ", el("output", {title: String(value ?? "not measured")}, short(value)),
        step.meaning ? el("span", {class: "dim"}, ` ${step.meaning}`) : null),
      step.formula ? el("code", {class: "formula"}, step.formula) : null,
      numbers && numbers !== step.formula ? el("code", {class: "numbers"}, `= ${numbers}`) : null,
      step.over && step.formula ? memberTable(step, place) : null));
  }
  return el("section", {class: "explain", "aria-live": "polite", tabindex: "-1"}, title, list);
}
