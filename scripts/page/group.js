// The attempts at one task: side by side with equal states in one row, or as a tree.

/** Rows of one sequence of states for all columns: each new column is aligned by a longest common subsequence. */
function alignStates(columns) {
  let rows = [];
  for (const keys of columns) {
    const n = rows.length, m = keys.length;
    const common = Array.from({length: n + 1}, () => new Uint16Array(m + 1));
    for (let i = n - 1; i >= 0; i--) {
      for (let j = m - 1; j >= 0; j--) {
        common[i][j] = rows[i] === keys[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
      }
    }
    const merged = [];
    let i = 0, j = 0;
    while (i < n || j < m) {
      if (i < n && j < m && rows[i] === keys[j]) { merged.push(rows[i]); i++; j++; }
      else if (i < n && (j >= m || common[i + 1][j] >= common[i][j + 1])) merged.push(rows[i++]);
      else merged.push(keys[j++]);
    }
    rows = merged;
  }
  return rows;
}

/** For each column, the row of each turn: the first row of its state after the turn before. */
function placesIn(rows, keys) {
  let from = 0;
  return keys.map((key) => { const at = rows.indexOf(key, from); from = at + 1; return at; });
}

/** The first turn at which attempts that agreed so far do different things; -1 if they never do. */
function firstDivergence(attempts) {
  for (let t = 0; ; t++) {
    const there = attempts.filter((e) => t < e.turns.length);
    if (there.length < 2) return -1;
    if (new Set(there.map((e) => `${e.turns[t].k}/${e.turns[t].a}`)).size > 1) return t;
  }
}

function columnsOf(attempts) {
  const keys = attempts.map((e) => e.turns.map((turn) => turn.k));
  const rows = alignStates(keys);
  const places = attempts.map((_, i) => placesIn(rows, keys[i]));
  const visitors = new Map();
  attempts.forEach((e, i) => new Set(keys[i]).forEach((key) => visitors.set(key, (visitors.get(key) || 0) + 1)));
  const anchors = [...new Set(rows)].filter((key) => visitors.get(key) > 1);
  const divergence = firstDivergence(attempts);
  const size = sizeOf("advantage", attempts[0].of);
  const body = rows.map((key, row) => {
    const anchor = anchors.indexOf(key);
    const state = el("th", {scope: "row", class: "state", title: text(key), style: anchor >= 0 ? {"border-left-color": `hsl(${hue(anchor)} 70% 50%)`} : {}},
      anchor >= 0 ? el("span", {class: "anchor", style: {"background-color": `hsl(${hue(anchor)} 70% 50% / 0.25)`}}, `state ${anchor + 1}`) : null,
      el("span", {class: "clip"}, text(key)));
    return el("tr", {}, state, attempts.map((e, i) => {
      const t = places[i].indexOf(row);
      if (t < 0) return el("td", {class: "empty"});
      const turn = e.turns[t];
      return el("td", {class: t === divergence ? "diverges" : null, style: anchor >= 0 ? {"background-color": `hsl(${hue(anchor)} 70% 50% / 0.13)`} : {}},
        t === divergence ? el("span", {class: "mark"}, "first difference") : null,
        link(`#episode/${e.number}/${t + 1}`, el("span", {class: "clip"}, `${t + 1}. ${text(turn.a) || "(none)"}`)),
        el("div", {class: "small"}, turn.s === "ok" ? null : el("span", {class: "bad"}, `${turn.s} `),
          turn.adv === null ? null : el("span", {class: "why", style: {"background-color": shade(turn.adv, size)}}, signed(turn.adv)),
          turn.r ? ` reward ${short(turn.r)}` : null));
    }));
  });
  const heads = ["state", ...attempts.map((e) => el("span", {}, link(`#episode/${e.number}`, `episode ${e.number}`), el("br"),
    el("span", {class: e.success ? "good" : "bad"}, e.stop), el("br"), `return ${short(e.reward)}`, isDemonstration(e) ? [el("br"), "a demonstration"] : null))];
  const note = `${plural(attempts.length, "attempt")}; ${plural(anchors.length, "state")} that several visit, each in one color.`;
  return [el("p", {}, note, divergence >= 0 ? ` They first do different things in turn ${divergence + 1}.` : attempts.length > 1 ? " They never differ." : ""), table(heads, body, {class: "columns"})];
}

// -- trees ------------------------------------------------------------------------------------------------------------
/** Turns that attempts share: by their node in a tree of attempts, otherwise by equal beginnings. */
function treeOf(attempts) {
  const root = {children: new Map(), attempts, turn: null};
  for (const e of attempts) {
    let at = root;
    e.turns.forEach((turn, t) => {
      const key = e.ofTurns.node ? `node ${e.ofTurns.node[t]}` : `${turn.k}/${turn.a}`;
      if (!at.children.has(key)) at.children.set(key, {children: new Map(), attempts: [], turn, e, t});
      at = at.children.get(key);
      at.attempts.push(e);
    });
    at.leaves = [...(at.leaves || []), e];
  }
  return root;
}

function treeNode(node) {
  const chain = [node];
  while (chain.at(-1).children.size === 1 && !chain.at(-1).leaves) chain.push([...chain.at(-1).children.values()][0]);
  const last = chain.at(-1);
  const solved = node.attempts.filter((e) => e.success).length;
  const actions = chain.filter((one) => one.turn).map((one) =>
    link(`#episode/${one.e.number}/${one.t + 1}`, `${one.t + 1}. ${text(one.turn.a) || "(none)"}`));
  const leaves = (last.leaves || []).map((e) => el("li", {}, link(`#episode/${e.number}`, `episode ${e.number}`), " ",
    el("span", {class: e.success ? "good" : "bad"}, `${e.stop}, return ${short(e.reward)}`)));
  const inside = [...last.children.values()].map(treeNode);
  return el("li", {}, el("div", {class: "path"}, actions.flatMap((one, i) => i ? [" → ", one] : [one]),
    node.attempts.length > 1 ? el("span", {class: "dim"}, ` ${solved} of ${node.attempts.length} solved`) : null),
    leaves.length || inside.length ? el("ul", {}, leaves, inside) : null);
}

function groupView(record, group, query) {
  const of = D.records[record];
  const attempts = of ? of.episodes.filter((e) => e.group === group) : [];
  if (!attempts.length) return [el("h1", {}, "No such group")];
  const asTree = query.get("show") === "tree";
  const here = `#group/${record}/${group}`;
  return [
    el("p", {class: "crumbs"}, link(`#episodes?${lastQuery}`, "episodes"),
      asTree ? link(here, "side by side") : el("b", {}, "side by side"), asTree ? el("b", {}, "tree") : link(`${here}?show=tree`, "tree")),
    el("h1", {}, "Attempts at one task"),
    el("p", {}, attempts[0].task, el("span", {class: "dim"}, ` ${recordLabel(of)}`)),
    said(text(attempts[0].goal), "goal"),
    asTree ? el("ul", {class: "tree"}, treeNode(treeOf(attempts))) : columnsOf(attempts),
  ];
}
