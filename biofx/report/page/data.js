// The history, and what every chart needs of it.

const FACTOR_BINS = 40, UPDATE_BINS = 32;
const $ = id => document.getElementById(id);

// Names come from a model and may hold anything: they are shown as text, and what would not be
// seen, or would turn the text around, is shown by its number.
function visible(text) {
  return String(text)
    .replace(/[\u0000-\u001f]/g, c => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]/gu,
      c => `‹U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}›`);
}

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}

function shape(tag, attributes = {}, text) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function bytes(text) {
  const raw = atob(text), found = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
  return found;
}

// ---- numbers as text

const whole = new Intl.NumberFormat('en-US');
const count = n => whole.format(n);

function compact(n) {
  if (n < 1e5) return count(n);
  const [size, unit] = n < 1e6 ? [1e3, 'k'] : n < 1e9 ? [1e6, 'M'] : [1e9, 'B'];
  return `${(n / size).toPrecision(3).replace(/\.?0+$/, '')}${unit}`;
}

function number(x, digits = 3) {
  if (x === null || x === undefined || !isFinite(x)) return '–';
  const size = Math.abs(x);
  const text = size !== 0 && (size < 1e-3 || size >= 1e5) ? x.toExponential(Math.max(digits - 2, 0)) : x.toPrecision(digits);
  return (text.includes('e') ? text : String(Number(text))).replace('-', '−');
}

// A synapse that was dampened often has a factor of 1e-40, say: it stands still.
const factor = (x, digits = 3) => (x > 0 && x < 1e-3 ? '≈ 0' : number(x, digits));

function percent(x) {
  if (x === null || x === undefined) return '–';
  const p = 100 * x;
  if (p === 0) return '0 %';
  if (p < 0.1) return '<0.1 %';
  return `${p < 10 ? p.toFixed(1) : Math.round(p)} %`;
}

const plural = (n, word) => `${count(n)} ${word}${n === 1 ? '' : 's'}`;

// ---- layers

function prepare(layer) {
  const sizes = layer.shape || [];
  layer.size = sizes.reduce((product, size) => product * size, 1);
  layer.numbers = layer.numbers || {};
  layer.synapses = layer.synapses || [];
  layer.missing = layer.missing || {};
  layer.factorBytes = layer.factors ? bytes(layer.factors) : null;
  layer.updateBytes = layer.updates ? bytes(layer.updates) : null;
  layer.label = layer.name.endsWith('.weight') ? layer.name.slice(0, -7) : layer.name;
  return layer;
}

// A snapshot's weights, from signed square roots in bytes.
function weights(snapshot) {
  const raw = new Int8Array(bytes(snapshot.matrix).buffer), found = new Float32Array(raw.length);
  for (let i = 0; i < raw.length; i++) {
    const root = raw[i] / 127;
    found[i] = Math.sign(root) * root * root * snapshot.scale;
  }
  return found;
}

const lastOf = values => {
  if (!values) return null;
  for (let i = values.length - 1; i >= 0; i--) if (values[i] !== null) return values[i];
  return null;
};
const at = (values, sample) => (values ? values[sample] ?? null : null);

// Rows × columns of the whole weight matrix.
function extent(layer) {
  const sizes = layer.shape || [1];
  if (sizes.length < 2) return [sizes[0] || 1, 1];
  const rows = sizes[layer.post];
  return [rows, layer.size / rows];
}
