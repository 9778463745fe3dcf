// What is shown of the node that is chosen.

const SERIES = [
  ['crystallized', 'Stabilised', 'blue', 'synapses whose factor was ever dampened'],
  ['replaced', 'Replaced', 'orange', 'synapses replaced since the start, counted again each time'],
  ['silent', 'Silent units', 'violet', 'output units that no gradient reached at that step'],
];

const card = (title, note, legend, ...content) => element('section', { class: 'card' },
  element('div', { class: 'top' }, element('h3', {}, title), legend && element('div', { class: 'legend' }, ...legend)), note && element('p', {}, note), ...content);

function gap(layer, part, otherwise) {
  const fault = layer.missing[part];
  return element('p', { class: 'empty' }, fault ? `The history is damaged here: ${visible(fault)}.` : otherwise);
}

function showNode(node) {
  view.charts = [];
  view.cursor = null;
  hideTip();
  const panels = node.layer && !node.list.length ? layerPanels(node.layer) : node.skipped && !node.list.length ? skippedPanels(node) : groupPanels(node);
  $('panels').replaceChildren(...panels.filter(Boolean));
  for (const chart of view.charts) chart.render();
}

function head(path, name, kind, chips) {
  return element('header', { class: 'head' }, element('p', { class: 'path' }, visible(path)),
    element('h2', {}, visible(name), kind ? element('small', {}, visible(kind)) : null),
    chips.length ? element('ul', { class: 'chips' }, ...chips) : null);
}

const chip = (text, rule) => element('li', rule ? { class: 'rule' } : {}, visible(text));

// ---- one layer

function layerPanels(layer) {
  const cut = layer.label.lastIndexOf('.');
  const chips = [
    layer.gamma > 1 ? chip(`Γ = ${layer.gamma}`) : null,
    layer.output ? chip('output layer') : null,
    ...(Array.isArray(layer.shared) ? layer.shared.map(other => chip(`shared with ${other}`)) : []),
    ...(Array.isArray(layer.rules) ? layer.rules.map(rule => chip(rule === 'FuzzyLearningRates' && layer.distribution ? `${rule} (${layer.distribution})` : rule, true)) : []),
  ].filter(Boolean);
  const faults = Object.entries(layer.missing);
  return [
    head(cut < 0 ? history.model : layer.label.slice(0, cut), layer.label.slice(cut + 1), layer.type, chips),
    faults.length ? element('p', { class: 'warn' }, element('b', {}, 'Parts of this layer’s history are missing. '),
      visible(faults.map(([part, fault]) => `${part}: ${fault}`).join('; '))) : null,
    figures(layer),
    timeline(layer),
    element('div', { class: 'cards three' }, matrices(layer), densities(layer)),
    element('div', { class: 'cards' }, fan(layer), updates(layer)),
    lives(layer),
  ];
}

function figures(layer) {
  const cells = [
    ['Synapses', '', () => compact(layer.size), () => (layer.shape || []).join(' × ')],
    ['Median factor', '', s => factor(at(layer.numbers.factor_q50, s)), s => {
      const low = at(layer.numbers.factor_q05, s), high = at(layer.numbers.factor_q95, s);
      return low === null ? '' : `90 % in ${factor(low, 2)} … ${factor(high, 2)}`;
    }],
    ...SERIES.filter(([key]) => layer.numbers[key]).map(([key, title, colour]) => [title, colour, s => percent(at(layer.numbers[key], s)), () => (key === 'silent' ? `of ${compact(extent(layer)[0])} units` : 'of synapses')]),
    ['Step', '', s => count(history.steps[s]), s => `sample ${s + 1} of ${history.steps.length}`],
  ];
  const boxes = cells.map(([title, colour]) => {
    const value = element('dd');
    return [element('div', { class: 'figure' }, element('dt', {}, colour ? element('span', { class: `key ${colour}` }) : null, title), value), value];
  });
  view.follow = sample => {
    const shown = sample === null ? history.steps.length - 1 : sample;
    cells.forEach(([, , value, more], i) => boxes[i][1].replaceChildren(value(shown), element('small', {}, more(shown) || ' ')));
  };
  view.follow(null);
  return element('dl', { class: 'figures' }, ...boxes.map(([box]) => box));
}

function timeline(layer) {
  const title = 'Plasticity factors, step by step';
  const note = 'What each synapse’s update is multiplied by: 1 learns at the full rate, 0 not at all. Lines: median, 5 % and 95 %.';
  if (!layer.factorBytes) return card(title, note, null, gap(layer, 'factors', 'No factor was recorded.'));
  const top = Math.min(FACTOR_BINS, Math.max(10, Math.ceil(usedBins(layer.factorBytes, FACTOR_BINS)[1] / 10) * 10));
  const height = 216, y = value => height * (1 - Math.min(value / (top / 20), 1));
  const n = layer.numbers;
  const factors = timeChart({
    height, label: `Heat map of the plasticity factors of ${visible(layer.label)} over the steps`,
    draw(svg, scale, width, canvas) {
      heat(canvas, layer.factorBytes, FACTOR_BINS, 0, top, scale, width, height);
      for (let tick = 0; tick <= top; tick += top > 20 ? 10 : 5) {
        const value = tick / 20, py = Math.round(y(value)) + .5;
        svg.append(shape('line', { class: 'grid', x1: scale.left, x2: width - RIGHT, y1: py, y2: py }),
          shape('text', { x: scale.left - 8, y: Math.min(Math.max(py + 4, 10), height), 'text-anchor': 'end' }, (tick === FACTOR_BINS ? '≥ ' : '') + value));
      }
      if (!n.factor_q50) return;
      for (const key of ['factor_q05', 'factor_q95']) if (n[key]) svg.append(shape('path', { class: 'quant', d: path(n[key], scale, y) }));
      const d = path(n.factor_q50, scale, y);
      svg.append(shape('path', { class: 'halo', d }), shape('path', { class: 'median', d }));
    },
    tell: s => `median ${factor(at(n.factor_q50, s))}, mean ${factor(at(n.factor_mean, s))}\n5 % to 95 %: ${factor(at(n.factor_q05, s))} to ${factor(at(n.factor_q95, s))}`,
  });
  const present = SERIES.filter(([key]) => n[key]);
  const strips = present.map(([key, name, colour, what], i) => {
    const high = nice(Math.max(...n[key].map(value => value ?? 0))), tall = 70, y = value => 26 + (tall - 26) * (1 - value / high);
    return timeChart({
      height: tall, labelled: i === present.length - 1, label: `${name} over the steps`,
      draw(svg, scale, width) {
        const base = y(0) - .5, d = path(n[key], scale, y), low = n[key].map(value => (value === null ? null : 0));
        svg.append(shape('line', { class: 'grid', x1: scale.left, x2: width - RIGHT, y1: base, y2: base }),
          shape('path', { class: `area ${colour} fill`, d: areaPath(low, n[key], scale, y) }),
          shape('path', { class: `line ${colour}`, d }),
          shape('text', { x: scale.left - 8, y: 30, 'text-anchor': 'end' }, percent(high).replace(' ', '\u2009')),
          shape('text', { x: scale.left - 8, y: tall, 'text-anchor': 'end' }, '0'));
        const label = shape('text', { class: 'label', x: scale.left, y: 17 }, name);
        const more = shape('tspan', { fill: 'var(--faint)', 'font-weight': '400', dx: 8 }, width > 560 ? what : '');
        label.append(more);
        svg.append(label);
      },
      marks: s => (at(n[key], s) === null ? [] : [[y(n[key][s]), colour]]),
      tell: s => `${name}: ${percent(at(n[key], s))}\n${what}`,
    });
  });
  const legend = [ramp(RAMPS, 'few', 'many synapses')];
  return card(title, note, legend, factors, ...strips, present.length ? null : element('p', { class: 'empty' }, 'No rule that stabilises or replaces synapses acts on this layer.'));
}

function nice(high) {
  if (!(high > 0)) return 0.01;
  const power = 10 ** Math.floor(Math.log10(high));
  return Math.min([1, 2, 2.5, 5, 10].map(m => m * power).find(step => step >= high * .999), high > 1 ? Infinity : 1);
}

// ---- weights

function matrices(layer) {
  const title = 'Weights before and after';
  const pair = [layer.before, layer.after];
  if (!layer.before || !layer.after) return card(title, null, null, gap(layer, layer.before ? 'after' : 'before', 'No weights were recorded.'));
  const values = pair.map(weights), [rows, columns] = extent(layer);
  const sorted = Float32Array.from([...values[0], ...values[1]].map(Math.abs)).sort();
  const limit = sorted[Math.floor(sorted.length * .985)] || sorted[sorted.length - 1] || 1;
  const canvases = pair.map(snapshot => element('canvas', { role: 'img', 'aria-label': `Weight matrix at step ${snapshot.step}` }));
  const draw = cell => canvases.forEach((canvas, i) => drawMatrix(canvas, values[i], pair[i], limit, cell));
  canvases.forEach((canvas, which) => {
    canvas.addEventListener('pointermove', event => {
      const box = canvas.getBoundingClientRect(), snapshot = pair[which];
      const row = Math.min(snapshot.rows - 1, Math.floor((event.clientY - box.top) / box.height * snapshot.rows));
      const column = Math.min(snapshot.columns - 1, Math.floor((event.clientX - box.left) / box.width * snapshot.columns));
      draw([row, column]);
      const place = row * snapshot.columns + column;
      showTip(event, `unit ${Math.floor(row * rows / snapshot.rows)} ← input ${Math.floor(column * columns / snapshot.columns)}\nbefore ${number(values[0][place])}\nafter ${number(values[1][place])}`);
    });
    canvas.addEventListener('pointerleave', () => { draw(null); hideTip(); });
  });
  view.charts.push({ render: () => draw(null), point() {} });
  const shown = layer.after.rows < rows || layer.after.columns < columns ? `, ${layer.after.rows} × ${layer.after.columns} evenly spaced of ${count(rows)} × ${count(columns)}` : '';
  return card(title, `Rows are output units, columns inputs${shown}. A column of one colour obeys Dale’s principle.`,
    [ramp(DIVERGING, '−', `+ ${number(limit, 2)}`)],
    element('div', { class: 'matrices' }, ...pair.map((snapshot, i) => element('figure', { class: 'matrix' },
      element('figcaption', {}, element('b', {}, i ? 'After ' : 'Before '), `step ${count(snapshot.step)}`), canvases[i],
      element('p', {}, signs(values[i], snapshot))))));
}

function signOf(values, snapshot, column) {
  let positive = false, negative = false;
  for (let row = 0; row < snapshot.rows; row++) {
    const value = values[row * snapshot.columns + column];
    if (value > 0) positive = true; else if (value < 0) negative = true;
  }
  return positive && negative ? 0 : positive ? 1 : negative ? -1 : null;
}

function signs(values, snapshot) {
  if (snapshot.rows < 4) return '';
  let one = 0;
  for (let column = 0; column < snapshot.columns; column++) if (signOf(values, snapshot, column) !== 0) one++;
  return one === snapshot.columns ? 'every column has one sign' : `${one} of ${snapshot.columns} columns have one sign`;
}

// Square roots, so that the many small weights show their sign.
const root = part => Math.sign(part) * Math.sqrt(Math.min(Math.abs(part), 1));

function drawMatrix(canvas, values, snapshot, limit, cell) {
  const { rows, columns } = snapshot, ratio = devicePixelRatio || 1, wide = canvas.clientWidth;
  if (!wide) return;
  const tall = Math.max(48, Math.min(wide, wide * Math.max(rows / columns, .62)));
  canvas.style.height = `${tall}px`;
  const width = canvas.width = Math.round(wide * ratio), height = canvas.height = Math.round(tall * ratio);
  const context = canvas.getContext('2d'), colours = table(DIVERGING);
  for (let row = 0; row < rows; row++) {
    const top = Math.round(row / rows * height), bottom = Math.round((row + 1) / rows * height);
    for (let column = 0; column < columns; column++) {
      const left = Math.round(column / columns * width), right = Math.round((column + 1) / columns * width);
      const c = 3 * Math.round(127.5 + 127.5 * root(values[row * columns + column] / limit));
      context.fillStyle = `rgb(${colours[c]},${colours[c + 1]},${colours[c + 2]})`;
      context.fillRect(left, top, right - left, bottom - top);
    }
  }
  if (cell) {
    const [row, column] = cell;
    context.strokeStyle = theme() === 'dark' ? '#fff' : '#000';
    context.lineWidth = 2 * ratio;
    context.strokeRect(column / columns * width, row / rows * height, width / columns, height / rows);
  }
}
