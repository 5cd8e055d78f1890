// One episode: its turns, tokens colored by a layer, and the explanation of a number.

let layer = "advantage";

function tokenButton(episode, t, k, size, open) {
  const value = layerAt(layer, episode, t, k);
  const shown = text(episode.turns[t].t[k]);
  const name = `${shown.trim() || "space"}, ${layer} ${value === null ? "not measured" : short(value)}`;
  return el("button", {type: "button", class: "token", "data-place": `${t}/${k}`, title: name, "aria-label": name,
    style: {"background-color": shade(value, size)}, onclick: () => open(t, k)}, shown.replace(/\n/g, "⏎\n") || "∅");
}

function turnBlock(episode, t, size, open) {
  const turn = episode.turns[t];
  const advantage = turn.adv;
  const facts = [`reward ${short(turn.r)}`, turn.s === "ok" ? null : turn.s,
    turn.lp.length ? `${plural(turn.lp.length, "token")}, log-probability ${short(turn.lp.reduce((a, b) => a + b, 0))}` : null,
    layer === "advantage" || !turn.lp.length ? null : `advantage ${signed(advantage)}`].filter(Boolean);
  const value = turn.lp.length ? null : layerAt(layer, episode, t, 0);
  return el("article", {class: "turn", id: `turn-${t + 1}`},
    el("h2", {}, `Turn ${t + 1}`, advantage === null ? null : el("button", {type: "button", class: "why", onclick: () => open(t, 0),
      style: {"background-color": shade(advantage, sizeOf("advantage", episode.of))}}, `advantage ${signed(advantage)}`)),
    said(text(turn.o), "observation"),
    turn.t.length ? el("div", {class: "tokens", role: "group", "aria-label": "sampled tokens"}, turn.t.map((_, k) => tokenButton(episode, t, k, size, open))) : null,
    el("p", {class: "action"}, el("span", {class: "dim"}, "action "), el("b", {style: {"background-color": shade(value, size)}}, text(turn.a) || "(none)")),
    el("p", {class: turn.s === "ok" ? "facts dim" : "facts bad"}, facts.join(" · ")),
    el("div", {class: "answer"}));
}

/** The episodes of the list that was shown last; all of them if this one is not in it. */
function orderAround(number) {
  const order = filtered(lastQuery).map((e) => e.number);
  return order.includes(number) ? order : D.episodes.map((e) => e.number);
}

function episodeView(number, at) {
  const episode = D.episodes[number];
  if (!episode) return [el("h1", {}, "No such episode"), el("p", {}, `There are episodes 0 to ${D.episodes.length - 1}.`)];
  const layers = layersOf(episode);
  if (!layers.includes(layer)) layer = layers[0];
  const size = sizeOf(layer, episode.of);
  const turns = el("div", {});
  const open = (t, k) => {
    for (const old of turns.querySelectorAll(".explain")) old.remove();
    for (const old of turns.querySelectorAll(".chosen")) old.classList.remove("chosen");
    turns.querySelector(`[data-place="${t}/${k}"]`)?.classList.add("chosen");
    const found = explanation(episode, t, k);
    found.append(el("button", {type: "button", class: "close", onclick: () => found.remove()}, "close"));
    turns.children[t].querySelector(".answer").append(found);
  };
  episode.turns.forEach((_, t) => turns.append(turnBlock(episode, t, size, open)));
  const order = orderAround(episode.number);
  const place = order.indexOf(episode.number);
  const beside = (step, label) => {
    const other = place < 0 ? undefined : order[place + step];
    return other === undefined ? el("span", {class: "dim"}, label) : link(`#episode/${other}`, label);
  };
  const facts = [["task", episode.task], ["type", episode.type], ["run", recordLabel(episode.of)], ["seed", episode.seed],
    ["ended by", episode.stop], ["score", short(episode.score)], ["return", short(episode.reward)]];
  if (isDemonstration(episode)) facts.push(["played by", "an expert, as a demonstration"]);
  return [
    el("p", {class: "crumbs"}, link(`#episodes?${lastQuery}`, "episodes"), beside(-1, "previous (←)"), beside(1, "next (→)"),
      link(`#group/${episode.record}/${episode.group}`, "attempts at this task"), link(`#pair?task=${encodeURIComponent(episode.task)}`, "another run on this task")),
    el("h1", {}, `Episode ${episode.number}`, el("span", {class: episode.success ? "good" : "bad"}, episode.success ? " solved" : " not solved")),
    el("dl", {class: "facts"}, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    said(text(episode.goal), "goal"),
    layers.length ? el("div", {class: "bar"}, choice("color", layers.map((name) => [name, name]), layer, (name) => { layer = name; render(); }),
      el("span", {class: "scale", "aria-hidden": "true"}, el("i", {style: {"background-color": shade(-size, size)}}, short(-size)), el("i", {}, "0"), el("i", {style: {"background-color": shade(size, size)}}, short(size))),
      el("span", {class: "dim"}, "Click a token or an advantage for where the number comes from.")) : el("p", {class: "dim"}, "This episode has no tokens and no numbers: a scripted agent played it, or its record is of an older version."),
    turns,
    el("h2", {}, "At the end"), said(text(episode.final), "observation"),
    text(episode.error) ? said(text(episode.error), "error") : null,
  ];
}
