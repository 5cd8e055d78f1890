// The data of the page: runs, records (files of episodes), episodes with turns, and columns of numbers.

let D = null;

async function unpack(text) {
  const decoded = atob(text.trim());
  const bytes = new Uint8Array(decoded.length);
  for (let i = 0; i < decoded.length; i++) bytes[i] = decoded.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/** Number the episodes, and give them their record. */
function prepare(data) {
  data.episodes.forEach((episode, number) => {
    episode.number = number;
    episode.of = data.records[episode.record];
    episode.reward = episode.turns.reduce((sum, turn) => sum + turn.r, 0);
    episode.invalid = episode.turns.filter((turn) => turn.s !== "ok").length;
  });
  data.records.forEach((record, number) => {
    record.number = number;
    record.episodes = data.episodes.slice(record.first, record.first + record.count);
    record.learned = record.episodes.filter((e) => "advantage" in e.ofTurns || "advantage" in e.ofTokens);
  });
  return data;
}

const text = (number) => D.strings[number];

function runLabel(record) {
  return record.run === null ? record.file : D.runs[record.run].label;
}

function recordLabel(record) {
  const when = record.update === null ? "" : `, update ${record.update}`;
  return `${runLabel(record)}${when}, ${record.kind === "training" ? "training on " : ""}${record.split}`;
}

function groupOf(episode) {
  return episode.of.episodes.filter((other) => other.group === episode.group && other.task === episode.task);
}

/** Whether an expert played the episode, for the policy to learn from. */
function isDemonstration(episode) {
  return Boolean(episode.ofTurns.demonstration?.[0]);
}

// -- columns ----------------------------------------------------------------------------------------------------------
// A place is {e: episode, t: turn, k: token or null}.

function ofTurn(name, e, t) {
  if (name in e.ofTurns) return e.ofTurns[name][t];
  const turn = e.turns[t];
  switch (name) {
    case "reward": return turn.r;
    case "invalid": return turn.s === "ok" ? 0 : 1;
    case "tokens": return turn.lp.length;
    case "end": return t === e.turns.length - 1 ? 1 : 0;
    case "first": return t === 0 ? 1 : 0;
    default: return undefined;
  }
}

function valueAt(name, place) {
  const {e, t, k} = place;
  if (k === null) return ofTurn(name, e, t);
  if (name in e.ofTokens) return e.ofTokens[name][t][k];
  switch (name) {
    case "logprob": return e.turns[t].lp[k];
    case "last": return k === e.turns[t].lp.length - 1 ? 1 : 0;
    case "end": return k === e.turns[t].lp.length - 1 && t === e.turns.length - 1 ? 1 : 0;
    default: return ofTurn(name, e, t);
  }
}

function follower({e, t, k}) {
  if (k === null) return t + 1 < e.turns.length ? {e, t: t + 1, k: null} : null;
  if (k + 1 < e.turns[t].lp.length) return {e, t, k: k + 1};
  for (let next = t + 1; next < e.turns.length; next++) if (e.turns[next].lp.length) return {e, t: next, k: 0};
  return null;
}

/** All places of a record that a method learned from, as turns or as tokens. */
function placesOf(record, asTokens) {
  const key = asTokens ? "tokenPlaces" : "turnPlaces";
  if (!record[key]) {
    const all = [];
    for (const e of record.learned) {
      e.turns.forEach((turn, t) => {
        if (!asTokens) all.push({e, t, k: null});
        else turn.lp.forEach((_, k) => all.push({e, t, k}));
      });
    }
    record[key] = all;
  }
  return record[key];
}

/** What can color the tokens of an episode: names of columns, advantage first. */
function layersOf(episode) {
  const names = ["advantage", "logprob", ...Object.keys(episode.ofTokens), ...Object.keys(episode.ofTurns)];
  return [...new Set(names)].filter((name) => name !== "advantage" || advantageAt(episode, 0, 0) !== null);
}

function advantageAt(episode, t, k) {
  if (episode.ofTokens.advantage) return episode.ofTokens.advantage[t]?.[k] ?? null;
  if (episode.ofTurns.advantage) return episode.ofTurns.advantage[t] ?? null;
  return episode.turns[t]?.adv ?? null;
}

function layerAt(name, episode, t, k) {
  if (name === "advantage") return advantageAt(episode, t, k);
  const value = valueAt(name, {e: episode, t, k});
  return value === undefined ? null : value;
}

/** A size of a layer's values that few exceed, over the record. */
function sizeOf(name, record) {
  record.sizes ??= {};
  if (!(name in record.sizes)) {
    const values = [];
    for (const e of record.episodes) {
      e.turns.forEach((turn, t) => {
        for (let k = 0; k < Math.max(turn.lp.length, 1); k++) {
          const value = layerAt(name, e, t, k);
          if (typeof value === "number") values.push(Math.abs(value));
        }
      });
    }
    values.sort((a, b) => a - b);
    record.sizes[name] = values[Math.floor(0.98 * (values.length - 1))] || values.at(-1) || 1;
  }
  return record.sizes[name];
}

/** Diverging: none at 0, blue above it, orange below it. */
function shade(value, size) {
  if (typeof value !== "number") return "transparent";
  const strength = Math.min(1, Math.abs(value) / size) * 0.62;
  return value >= 0 ? `rgb(40 110 230 / ${strength})` : `rgb(235 105 20 / ${strength})`;
}
