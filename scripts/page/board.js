// The leaderboards of sweeps.

function boardView() {
  if (!D.boards.length) return [el("h1", {}, "Leaderboard"), el("p", {}, "There is no leaderboard.json in these folders; scripts.sweep writes one.")];
  return [el("h1", {}, "Leaderboard"), D.boards.map((board) => el("section", {},
    D.boards.length > 1 ? el("p", {class: "dim"}, board.file) : null,
    board.tables.map((one) => [el("h2", {}, one.title), el("p", {class: "dim"}, one.note), table(one.heads, one.rows),
      one.words.length ? el("ul", {}, one.words.map((line) => el("li", {}, line))) : null])))];
}
