// Charts over one axis of steps, which share a cursor; histograms; matrices.

const RIGHT = 10;
const view = { log: false, cursor: null, charts: [] };

// ---- colours: safe for colour-blind readers, for paper and for night

const RAMPS = {
  light: ['#ffffff', '#e2eef5', '#a9d0e4', '#5fa8cf', '#2676ad', '#144a80', '#0a2450'],
  dark: ['#171c25', '#1c3347', '#1f567a', '#2a83a8', '#4fb3bf', '#a3dcc0', '#f7f7c6'],
};
const DIVERGING = {
  light: ['#8c3a04', '#c9651a', '#efae74', '#f7f4ee', '#8fbfe0', '#2f7fbd', '#0b3f77'],
  dark: ['#ffc58f', '#ef8f45', '#9a5423', '#1b212b', '#255d8d', '#4d9fe0', '#b5dcfb'],
};
const theme = () => document.documentElement.dataset.theme;
const tables = {};

function table(ramps) {
  const stops = ramps[theme()], key = stops.join();
  if (!tables[key]) {
    const found = new Uint8ClampedArray(256 * 3);
    const parse = hex => [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16));
    for (let i = 0; i < 256; i++) {
      const place = i / 255 * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2);
      const [a, b] = [parse(stops[low]), parse(stops[low + 1])];
      for (let c = 0; c < 3; c++) found[3 * i + c] = a[c] + (b[c] - a[c]) * (place - low);
    }
    tables[key] = found;
  }
  return tables[key];
}

function ramp(ramps, low, high) {
  const canvas = element('canvas', { width: 96, height: 1, 'aria-hidden': 'true' });
  const context = canvas.getContext('2d'), image = context.createImageData(96, 1), colours = table(ramps);
  for (let i = 0; i < 96; i++) {
    const c = 3 * Math.round(i / 95 * 255);
    image.data.set([colours[c], colours[c + 1], colours[c + 2], 255], 4 * i);
  }
  context.putImageData(image, 0, 0);
  canvas.style.width = '96px';
  canvas.style.height = '8px';
  return element('span', { class: 'ramp' }, low, canvas, high);
}

// ---- the axis of steps

function axis(width, left) {
  const steps = history.steps, first = steps[0], last = steps[steps.length - 1];
  const place = view.log ? step => Math.log10(Math.max(step, 1)) : step => step;
  const low = place(view.log ? first : 0), high = Math.max(place(last), low + 1e-9);
  const x = step => left + (place(step) - low) / (high - low) * (width - left - RIGHT);
  // Each sample's column reaches half-way to its neighbours.
  const edges = steps.map((step, i) => i ? (x(steps[i - 1]) + x(step)) / 2 : left);
  edges.push(width - RIGHT);
  return { x, edges, left, first: view.log ? first : 0, last };
}

function ticks(low, high, most = 6) {
  const power = 10 ** Math.floor(Math.log10((high - low) / most));
  const count = step => Math.floor(high / step + 1e-9) - Math.ceil(low / step - 1e-9) + 1;
  const wide = [1, 2, 5, 10].map(m => m * power).find(s => count(s) <= most + 1) || power * 20;
  // One number is no scale.
  const step = [20, 10, 5, 2, 1, .5, .2, .1].map(m => m * power).find(s => s <= wide && count(s) >= 2) || wide;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9); i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function stepTicks(scale, width) {
  if (!view.log) return ticks(0, scale.last, Math.max(2, Math.floor(width / 130))).filter(Number.isInteger);
  const found = [];
  for (let power = 1; power <= scale.last; power *= 10) if (power >= scale.first) found.push(power);
  return found.length > 1 ? found : [scale.first, scale.last];
}

function sampleAt(edges, x) {
  let low = 0, high = edges.length - 2;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (edges[middle] <= x) low = middle; else high = middle - 1;
  }
  return low;
}

// A chart over steps. `draw(svg, scale, width, canvas)` draws it; `tell(sample)` says what the cursor shows.
function timeChart({ height, label, draw, tell, marks, labelled = false, left = 44 }) {
  const node = element('div', { class: 'chart', role: 'img', 'aria-label': label });
  const canvas = element('canvas', { 'aria-hidden': 'true' }), svg = shape('svg', { 'aria-hidden': 'true' });
  const cursor = shape('g');
  node.append(canvas, svg);
  const total = height + (labelled ? 22 : 0);
  node.style.height = `${total}px`;
  let scale = null;
  const chart = {
    render() {
      const width = node.clientWidth;
      if (!width) return;
      scale = axis(width, left);
      svg.setAttribute('width', width);
      svg.setAttribute('height', total);
      svg.replaceChildren();
      canvas.width = 0;
      draw(svg, scale, width, canvas);
      if (labelled) {
        for (const step of stepTicks(scale, width)) {
          const x = scale.x(step);
          svg.append(shape('line', { class: 'grid', x1: x, x2: x, y1: height, y2: height + 4 }),
            shape('text', { x, y: height + 17, 'text-anchor': x > width - 30 ? 'end' : 'middle' }, compact(step)));
        }
        svg.append(shape('text', { x: 0, y: height + 17 }, 'step'));
      }
      svg.append(cursor);
      chart.point();
    },
    point() {
      cursor.replaceChildren();
      if (view.cursor === null || !scale) return;
      const x = Math.round(scale.x(history.steps[view.cursor])) + .5;
      cursor.append(shape('line', { class: 'cursor', x1: x, x2: x, y1: 0, y2: height }));
      for (const [y, colour] of marks ? marks(view.cursor, height) : []) {
        cursor.append(shape('circle', { class: `dot ${colour} fill`, cx: x, cy: y, r: 4.5 }));
      }
    },
  };
  node.addEventListener('pointermove', event => {
    if (!scale) return;
    const box = node.getBoundingClientRect();
    setCursor(sampleAt(scale.edges, event.clientX - box.left));
    showTip(event, `step ${count(history.steps[view.cursor])}\n${tell(view.cursor)}`);
  });
  node.addEventListener('pointerleave', () => { setCursor(null); hideTip(); });
  view.charts.push(chart);
  return node;
}

function setCursor(sample) {
  if (sample === view.cursor) return;
  view.cursor = sample;
  for (const chart of view.charts) chart.point();
  if (view.follow) view.follow(sample);
}

function showTip(event, text) {
  const tip = $('tip');
  tip.textContent = text;
  tip.hidden = false;
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const y = event.clientY + 16 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : event.clientY + 16;
  tip.style.left = `${x}px`;
  tip.style.top = `${y}px`;
}
const hideTip = () => { $('tip').hidden = true; };

// ---- pieces

// Runs of samples without a gap, as polylines.
function runs(values) {
  const found = [];
  let run = null;
  values.forEach((value, i) => {
    if (value === null || value === undefined) run = null;
    else { if (!run) found.push(run = []); run.push(i); }
  });
  return found;
}

function path(values, scale, y) {
  return runs(values).map(run => run.map((i, k) => `${k ? 'L' : 'M'}${scale.x(history.steps[i]).toFixed(1)} ${y(values[i]).toFixed(1)}`).join('')
    + (run.length === 1 ? 'h.1' : '')).join('');
}

function areaPath(low, high, scale, y) {
  return runs(low.map((value, i) => value === null || high[i] === null ? null : value)).map(run => {
    const point = (values, i) => `${scale.x(history.steps[i]).toFixed(1)} ${y(values[i]).toFixed(1)}`;
    return `M${run.map(i => point(high, i)).join('L')}L${run.slice().reverse().map(i => point(low, i)).join('L')}Z`;
  }).join('');
}

// Histograms over time: one column a sample, dark where many are.
function heat(canvas, data, bins, from, to, scale, width, height) {
  const ratio = devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext('2d'), colours = table(RAMPS);
  let most = 1;
  for (let i = 0; i < data.length; i++) if (data[i] > most) most = data[i];
  const shown = to - from;
  context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue('--card');
  for (let sample = 0; sample < history.steps.length; sample++) {
    const left = Math.round(scale.edges[sample] * ratio), right = Math.round(scale.edges[sample + 1] * ratio);
    for (let bin = from; bin < to; bin++) {
      const value = data[sample * bins + bin];
      if (!value) continue;
      const c = 3 * Math.round(20 + value / most * 235);
      const top = Math.round((1 - (bin + 1 - from) / shown) * height * ratio), bottom = Math.round((1 - (bin - from) / shown) * height * ratio);
      context.fillStyle = `rgb(${colours[c]},${colours[c + 1]},${colours[c + 2]})`;
      context.fillRect(left, top, Math.max(right - left, 1), bottom - top);
    }
  }
}

function usedBins(data, bins) {
  let low = bins, high = 0;
  for (let i = 0; i < data.length; i++) if (data[i]) { const bin = i % bins; if (bin < low) low = bin; if (bin >= high) high = bin + 1; }
  return high ? [low, high] : [0, bins];
}

function sparkline(data, bins, sample, width, height) {
  const svg = shape('svg', { width, height, 'aria-hidden': 'true' });
  svg.append(shape('line', { class: 'spark-base', x1: 0, x2: width, y1: height - .5, y2: height - .5 }));
  if (!data || sample < 0) return svg;
  const slice = data.subarray(sample * bins, (sample + 1) * bins), most = Math.max(1, ...slice), step = width / bins;
  let d = '';
  slice.forEach((value, i) => {
    if (value) { const tall = Math.max(1, (value / most) ** 1.4 * (height - 1)); d += `M${(i * step).toFixed(2)} ${height}v${-tall.toFixed(2)}h${(step * .86).toFixed(2)}v${tall.toFixed(2)}z`; }
  });
  svg.append(shape('path', { class: 'spark', d }));
  return svg;
}
