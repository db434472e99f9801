// Elements, numbers and colours. Text goes into the page as text, never as markup.

const page = JSON.parse(document.getElementById('data').textContent);
const isDark = window.matchMedia('(prefers-color-scheme: dark)');
const isCalm = window.matchMedia('(prefers-reduced-motion: reduce)');

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function shape(name, attributes = {}, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', name);
  return fill(node, attributes, children);
}

function number(value) {
  if (value === null || !Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  if (size && (size < 1e-3 || size >= 1e5)) {
    const [digits, power] = value.toExponential(2).split('e');
    return `${digits}e${power[0]}${power.slice(1).padStart(2, '0')}`;
  }
  if (size >= 1000) return Math.round(value).toLocaleString('en');
  return String(Number(value.toPrecision(3)));
}

const SUPERSCRIPTS = '⁰¹²³⁴⁵⁶⁷⁸⁹';

// A tick of a logarithmic scale.
function power(value) {
  const exponent = Math.log10(value);
  if (!Number.isInteger(exponent) || (value >= 1e-3 && value <= 1e4)) return number(value);
  const digits = Array.from(String(Math.abs(exponent)), (d) => SUPERSCRIPTS[d]).join('');
  return `10${exponent < 0 ? '⁻' : ''}${digits}`;
}

function percent(value) {
  if (value >= 100) return `${number(value)} times`;
  return `${Number((100 * value).toPrecision(Math.abs(value) < 1 ? 2 : 3))}\u00a0%`;
}

// The numbers of a table, looked up by output t and earlier step k.
class Norms {
  constructor(table) {
    const bytes = Uint8Array.from(atob(table.values), (c) => c.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    this.values = Float32Array.from({ length: bytes.length / 4 }, (_, i) =>
      view.getFloat32(4 * i, true));
    this.table = table;
    this.each = Math.ceil(table.steps / table.rows);
  }

  cell(row, column) {
    return this.values[(row * (row + 1)) / 2 + column];
  }

  at(t, k) {
    if (this.table.kind === 'band') return this.values[t * this.table.columns + t - k];
    return this.cell(Math.floor(t / this.each), Math.floor(k / this.each));
  }

  // How many lags of an output are known, its own step included.
  lags(t) {
    return this.table.kind === 'band' ? Math.min(t + 1, this.table.columns) : t + 1;
  }
}

// Viridis, by van der Walt & Smith (2015): ordered in lightness, so that it can be read
// with any colour vision and in grey.
const VIRIDIS = [
  [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
  [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37],
];

function viridis(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[low].map((c, i) =>
    Math.round(c + (place - low) * (VIRIDIS[low + 1][i] - c)));
}

// Of a level from 0 to 1: what is strong stands out from the paper, light or dark.
function colour(level) {
  return viridis(isDark.matches ? level : 1 - level);
}

function inkOn([r, g, b]) {
  return 0.299 * r + 0.587 * g + 0.114 * b > 140 ? '#111' : '#fff';
}

// A level on a logarithmic scale of so many decades below the largest.
function level(value, largest, decades) {
  if (!(value > 0) || !(largest > 0)) return 0;
  return Math.max(0, 1 + Math.log10(value / largest) / decades);
}

const SIGNS = { ' ': '␣', '\n': '⏎', '\t': '⇥' };

function visible(token) {
  return Array.from(token, (c) => SIGNS[c] ?? c).join('');
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

// Draw now, and again whenever the width or the colours change.
function whenever(host, draw) {
  let width = 0;
  new ResizeObserver(() => {
    if (host.clientWidth && host.clientWidth !== width) {
      width = host.clientWidth;
      draw(width);
    }
  }).observe(host);
  isDark.addEventListener('change', () => width && draw(width));
}

// A labelled slider; `say` gives what its value means.
function slider(label, low, high, value, say, moved) {
  const input = element('input', { type: 'range', min: low, max: high, step: 1 });
  const told = () => input.setAttribute('aria-valuetext', say(Number(input.value)));
  input.value = value;
  input.addEventListener('input', () => {
    told();
    moved(Number(input.value));
  });
  told();
  const node = element('label', { class: 'slider' }, element('span', {}, label), input);
  return {
    node,
    input,
    set(next, newHigh = high) {
      input.max = newHigh;
      input.value = next;
      told();
    },
  };
}

function button(text, pressed) {
  const node = element('button', { type: 'button' }, text);
  node.addEventListener('click', pressed);
  return node;
}
