"use strict";
// Small helpers. Text comes into the page only by `el`, as text nodes.

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) node.style.setProperty(key, one);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

function link(hash, ...children) {
  return el("a", {href: hash}, ...children);
}

/** A number in few digits: 0.1235, 1.20e-7, 12. */
function short(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(3);
  return String(Number(value.toPrecision(5)));
}

function signed(value) {
  return value === null || value === undefined ? "–" : (value > 0 ? "+" : "") + short(value);
}

function percent(value) {
  return (100 * value).toFixed(1) + " %";
}

function plural(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

function choice(label, options, selected, onchange) {
  const select = el("select", {onchange: (event) => onchange(event.target.value)});
  for (const [value, text] of options) {
    select.append(el("option", {value, selected: String(value) === String(selected)}, text));
  }
  return el("label", {class: "field"}, el("span", {}, label), select);
}

function table(heads, rows, attributes) {
  return el("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "table"},
    el("table", attributes || {},
      el("thead", {}, el("tr", {}, heads.map((head) => el("th", {scope: "col"}, head)))),
      el("tbody", {}, rows.map((row) => row instanceof Node ? row : el("tr", {}, row.map((cell) => el("td", {}, cell)))))));
}

/** A text of an episode; what is empty is said. */
function said(text, kind) {
  return el("pre", {class: kind}, text === "" ? el("span", {class: "dim"}, "(empty)") : text);
}

/** The color of group number `n`, the same in every view. */
function hue(n) {
  return Math.round((n * 137.508 + 210) % 360);
}
