// The address (#view/…?…) says what is shown; keys move between episodes.

let lastQuery = new URLSearchParams();
const VIEWS = [["runs", "Runs"], ["episodes", "Episodes"], ["pair", "Two runs"], ["board", "Leaderboard"]];

function go(hash) {
  if (location.hash === hash) render();
  else location.hash = hash;
}

function route() {
  const [path, query] = location.hash.slice(1).split("?");
  const [view, ...rest] = path.split("/");
  return {view: view || (D.runs.length ? "runs" : "episodes"), rest: rest.map(Number), query: new URLSearchParams(query)};
}

function view({view, rest, query}) {
  switch (view) {
    case "runs": return runsView(query);
    case "episodes": lastQuery = query; return episodesView(query);
    case "episode": return episodeView(rest[0], rest[1]);
    case "group": return groupView(rest[0], rest[1], query);
    case "pair": return pairView(query);
    case "board": return boardView();
    default: return [el("h1", {}, "No such view"), el("p", {}, link("#runs", "all runs"))];
  }
}

function render() {
  const at = route();
  charts = [];
  const main = document.getElementById("main");
  main.replaceChildren(...[gapsNote(), view(at)].flat(Infinity).filter(Boolean));
  const active = {episode: "episodes", group: "episodes"}[at.view] || at.view;
  document.getElementById("nav").replaceChildren(...VIEWS.map(([name, label]) =>
    el("a", {href: `#${name}`, "aria-current": name === active ? "page" : null}, label)));
  document.title = `${main.querySelector("h1")?.textContent || "Runs"} – runs`;
  drawCharts();
  if (at.view === "episode" && at.rest[1]) document.getElementById(`turn-${at.rest[1]}`)?.scrollIntoView();
  else scrollTo(0, 0);
}

function gapsNote() {
  if (!D.gaps.length) return null;
  return el("details", {class: "gaps"}, el("summary", {}, `${plural(D.gaps.length, "gap")}: what could not be shown`),
    el("ul", {}, D.gaps.map((gap) => el("li", {}, gap))));
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const at = route();
  if (event.key === "Escape") {
    const open = document.querySelector(".explain .close");
    if (open) open.click();
    else if (at.view === "episode" || at.view === "group") go(`#episodes?${lastQuery}`);
  }
  if (at.view === "episode" && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
    const order = orderAround(at.rest[0]);
    const other = order[order.indexOf(at.rest[0]) + (event.key === "ArrowRight" ? 1 : -1)];
    if (other !== undefined) go(`#episode/${other}`);
  }
}

function describe() {
  document.getElementById("state").textContent = `${plural(D.runs.length, "run")}, ${plural(D.episodes.length, "episode")}`
    + (document.documentElement.dataset.stamp ? ", live" : "");
}

/** Ask the server for new data every few seconds, and show it; an explanation that is open stays. */
async function watch(have) {
  for (;;) {
    await new Promise((done) => setTimeout(done, 3000));
    try {
      const answer = await fetch(`data?have=${have}`);
      if (answer.status === 204 || !answer.ok) continue;
      const data = prepare(await unpack(await answer.text()));
      if (document.querySelector(".explain")) continue;
      have = answer.headers.get("ETag");
      D = data;
      const y = scrollY;
      describe();
      render();
      scrollTo(0, y);
    } catch {
      document.getElementById("state").textContent = "the server has stopped; this is what it sent last";
    }
  }
}

async function start() {
  const holder = document.getElementById("data");
  try {
    D = prepare(await unpack(holder.textContent));
  } catch (error) {
    document.getElementById("state").textContent = `The data of this page cannot be read: ${error.message}`;
    return;
  }
  holder.remove();
  describe();
  render();
  addEventListener("hashchange", render);
  addEventListener("keydown", onKey);
  addEventListener("resize", drawCharts);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
  document.documentElement.dataset.ready = "yes";
  if (document.documentElement.dataset.stamp) watch(document.documentElement.dataset.stamp);
}

start();
