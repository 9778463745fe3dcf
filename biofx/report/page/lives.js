// Distributions, single synapses, and groups of layers.

function densities(layer) {
  const title = 'Distribution of weights';
  const { before, after } = layer;
  if (!before || !after) return card(title, null, null, gap(layer, before ? 'after' : 'before', 'No weights were recorded.'));
  const node = element('div', { class: 'chart fill-card', role: 'img', 'aria-label': 'Distribution of weights before and after' });
  const svg = shape('svg', { 'aria-hidden': 'true' });
  node.append(svg);
  // Density at the middle of each bin, smoothed a little: a sample of a flat law is not a comb.
  const curve = snapshot => {
    let data = [...bytes(snapshot.histogram)].map(root => (root / 255) ** 2);
    const wide = ((snapshot.high - snapshot.low) || 1e-9) / data.length;
    for (let pass = 0; pass < 3; pass++) {
      const near = i => data[Math.min(Math.max(i, 0), data.length - 1)];
      data = data.map((_, i) => (near(i - 2) + 4 * near(i - 1) + 6 * near(i) + 4 * near(i + 1) + near(i + 2)) / 16);
    }
    const points = data.map((share, i) => [snapshot.low + (i + .5) * wide, share / wide]);
    return [[snapshot.low, 0], [snapshot.low, points[0][1]], ...points, [snapshot.high, points[points.length - 1][1]], [snapshot.high, 0]];
  };
  const curves = [curve(before), curve(after)];
  view.charts.push({
    point() {},
    render() {
      const width = node.clientWidth, height = node.clientHeight - 22;
      if (!width) return;
      svg.setAttribute('width', width);
      svg.setAttribute('height', height + 22);
      const low = Math.min(before.low, after.low), high = Math.max(before.high, after.high, low + 1e-9);
      const most = Math.max(...curves.flat().map(point => point[1])) || 1;
      const x = w => 4 + (w - low) / (high - low) * (width - 8), y = d => 8 + (height - 8) * (1 - d / most);
      const outline = points => `M${points.map(([w, d]) => `${x(w).toFixed(1)} ${y(d).toFixed(1)}`).join('L')}`;
      svg.replaceChildren();
      for (const tick of ticks(low, high, Math.max(2, Math.floor(width / 80)))) {
        svg.append(shape('line', { class: tick === 0 ? 'zero' : 'grid', x1: Math.round(x(tick)) + .5, x2: Math.round(x(tick)) + .5, y1: 8, y2: height }),
          shape('text', { x: Math.min(Math.max(x(tick), 12), width - 12), y: height + 17, 'text-anchor': 'middle' }, number(tick, 2)));
      }
      svg.append(shape('path', { class: 'before', d: outline(curves[0]) }), shape('path', { class: 'before-line', d: outline(curves[0]) }),
        shape('path', { class: 'after', d: outline(curves[1]) }), shape('path', { class: 'after-line', d: outline(curves[1]) }), shape('line', { class: 'zero', x1: 0, x2: width, y1: height + .5, y2: height + .5 }));
    },
  });
  return card(title, 'The middle 96 % of a sample.', [element('span', {}, element('i', { class: 'dash past' }), 'before'), element('span', {}, element('i', { class: 'dash now' }), 'after')], node);
}

function fan(layer) {
  const n = layer.numbers, title = 'Weights over time', note = 'Median, the middle half, 5 % to 95 %; thin, where they fit, the smallest and the largest.';
  if (!n.weight_q50) return card(title, note, null, gap(layer, 'numbers', 'No weights were recorded.'));
  const height = 170, flat = [n.weight_min, n.weight_max].flat().filter(value => value !== null);
  // A few large weights must not flatten all others.
  const inner = 3 * Math.max(...[n.weight_q05, n.weight_q95].flat().map(value => Math.abs(value ?? 0)), 1e-12);
  const low = Math.max(-inner, Math.min(0, ...flat)), high = Math.min(inner, Math.max(0, ...flat, low + 1e-9)), y = w => 6 + (height - 12) * (1 - (w - low) / (high - low));
  const within = values => values.map(value => (value === null || value < low || value > high ? null : value));
  return card(title, note, null, timeChart({
    height, labelled: true, label: 'Quantiles of the weights over the steps',
    draw(svg, scale, width) {
      for (const tick of ticks(low, high, 4)) {
        const py = Math.round(y(tick)) + .5;
        svg.append(shape('line', { class: tick === 0 ? 'zero' : 'grid', x1: scale.left, x2: width - RIGHT, y1: py, y2: py }), shape('text', { x: scale.left - 8, y: py + 4, 'text-anchor': 'end' }, number(tick, 2)));
      }
      svg.append(shape('path', { class: 'band', d: areaPath(n.weight_q05, n.weight_q95, scale, y) }), shape('path', { class: 'band inner', d: areaPath(n.weight_q25, n.weight_q75, scale, y) }),
        shape('path', { class: 'edge', d: path(within(n.weight_min), scale, y) }), shape('path', { class: 'edge', d: path(within(n.weight_max), scale, y) }), shape('path', { class: 'mid', d: path(n.weight_q50, scale, y) }));
    },
    marks: s => (at(n.weight_q50, s) === null ? [] : [[y(n.weight_q50[s]), 'blue']]),
    tell: s => `largest ${number(at(n.weight_max, s))}\n95 %: ${number(at(n.weight_q95, s))}, 75 %: ${number(at(n.weight_q75, s))}\nmedian ${number(at(n.weight_q50, s))}\n25 %: ${number(at(n.weight_q25, s))}, 5 %: ${number(at(n.weight_q05, s))}\nsmallest ${number(at(n.weight_min, s))}`,
  }));
}

function updates(layer) {
  const title = 'Updates over time', note = 'How far one step moves a weight, |Δw|, after plasticity has acted.';
  if (!layer.updateBytes || !layer.updateBytes.some(Boolean)) return card(title, note, null, gap(layer, 'updates', 'No update was recorded.'));
  const height = 170, [first, last] = usedBins(layer.updateBytes, UPDATE_BINS), from = Math.max(0, Math.floor(first / 4) * 4), to = Math.min(UPDATE_BINS, Math.ceil(last / 4) * 4);
  const power = n => `10${[...String(n)].map(c => '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'['-0123456789'.indexOf(c)]).join('')}`;
  const share = (s, bin) => (layer.updateBytes[s * UPDATE_BINS + bin] / 255) ** 2;
  return card(title, note, [ramp(RAMPS, 'few', 'many')], timeChart({
    height, labelled: true, label: 'Heat map of the sizes of updates over the steps',
    draw(svg, scale, width, canvas) {
      heat(canvas, layer.updateBytes, UPDATE_BINS, from, to, scale, width, height);
      const every = to - from > 20 ? 8 : 4;
      for (let bin = from; bin <= to; bin += every) {
        const py = Math.round(height * (1 - (bin - from) / (to - from))) + .5, text = (bin === 0 ? '≤ ' : '') + power(bin / 4 - 8);
        svg.append(shape('line', { class: 'grid', x1: scale.left, x2: width - RIGHT, y1: py, y2: py }), shape('text', { x: scale.left - 8, y: Math.min(Math.max(py + 4, 10), height), 'text-anchor': 'end' }, text));
      }
    },
    tell(s) {
      let sum = 0, middle = 0;
      while (middle < UPDATE_BINS - 1 && sum + share(s, middle) < .5) sum += share(s, middle++);
      const held = share(s, 0);
      return `half of the updates are smaller than about ${number(10 ** ((middle + .5) / 4 - 8), 1)}` + (held > .001 ? `\n${percent(held)} of the weights were all but held` : '');
    },
  }));
}

// ---- single synapses, each a lane: the line's height is the weight, its width the factor

function lives(layer) {
  const title = 'Single synapses, from birth to death';
  const note = 'The line is the weight of one synapse; it is as thick as the synapse is plastic, and a hair where it has stabilised. ○ a synapse is born, ✕ it dies and a new one takes its place, in the other colour. Left: unit ← input, and its weight now.';
  if (!layer.synapses.length) return card(title, note, null, gap(layer, 'synapses', 'No synapse was followed.'));
  const lanes = layer.synapses.map((synapse, i) => lane(layer, synapse, i === layer.synapses.length - 1));
  return card(title, note, null, ...lanes);
}

function lane(layer, synapse, last) {
  const tall = 46, known = synapse.weight.filter(value => value !== null);
  let low = Math.min(...known), high = Math.max(...known);
  if (!(high > low)) { low -= Math.abs(low) || 1; high += Math.abs(high) || 1; }
  const pad = (high - low) * .12, y = w => 4 + (tall - 8) * (1 - (w - low + pad) / (high - low + 2 * pad));
  const [row, column] = synapse.place, born = synapse.born > history.steps[0] || synapse.born > 0 ? [synapse.born] : [];
  const most = Math.max(1, ...layer.synapses.flatMap(other => other.factor.map(value => value ?? 0)));
  return timeChart({
    height: tall, labelled: last, left: 92, label: `Life of the synapse from input ${column} to unit ${row}`,
    draw(svg, scale, width) {
      const zero = Math.round(y(0)) + .5;
      if (zero > 0 && zero < tall) svg.append(shape('line', { class: 'grid', x1: scale.left, x2: width - RIGHT, y1: zero, y2: zero }));
      // A replaced synapse's line ends where the new one begins.
      let life = 0;
      const marks = [...synapse.replaced];
      const parts = [[]];
      synapse.weight.forEach((weight, i) => {
        while (marks.length && history.steps[i] >= marks[0]) { marks.shift(); parts.push([]); }
        if (weight !== null) parts[parts.length - 1].push(i);
      });
      for (const part of parts) {
        if (part.length) {
          const half = i => .55 + 2.6 * Math.min((synapse.factor[i] ?? 1) / most, 1);
          const edge = (i, sign) => `${scale.x(history.steps[i]).toFixed(1)} ${(y(synapse.weight[i]) + sign * half(i)).toFixed(1)}`;
          const d = part.length > 1 ? `M${part.map(i => edge(i, -1)).join('L')}L${part.slice().reverse().map(i => edge(i, 1)).join('L')}Z` : `M${edge(part[0], -1)}h1.5V${(y(synapse.weight[part[0]]) + half(part[0])).toFixed(1)}h-1.5Z`;
          svg.append(shape('path', { class: `life${life % 2 ? ' second' : ''}`, d }));
        }
        life++;
      }
      const near = step => { const i = history.steps.findIndex(s => s >= step); return i < 0 ? history.steps.length - 1 : i; };
      for (const step of synapse.replaced) {
        const x = scale.x(step), i = near(step), py = y(synapse.weight[Math.max(i - 1, 0)] ?? 0);
        svg.append(shape('path', { class: 'death', d: `M${x - 4} ${py - 4}l8 8m0 -8l-8 8` }));
      }
      for (const step of [...born]) svg.append(shape('circle', { class: 'birth', cx: scale.x(Math.max(step, scale.first)), cy: y(synapse.weight[near(step)] ?? 0), r: 4 }));
      svg.append(shape('text', { class: 'life-name', x: 0, y: tall / 2 - 3 }, `${row} ← ${column}`),
        shape('text', { class: 'life-at', x: 0, y: tall / 2 + 12 }, number(lastOf(synapse.weight))));
    },
    marks: s => (at(synapse.weight, s) === null ? [] : [[y(synapse.weight[s]), 'ink']]),
    tell(s) {
      const deaths = synapse.replaced.filter(step => step <= history.steps[s]).length;
      return `unit ${row} ← input ${column}\nweight ${number(at(synapse.weight, s))}, factor ${factor(at(synapse.factor, s))}` + (deaths ? `\nreplaced ${deaths === 1 ? 'once' : `${deaths} times`}` : '');
    },
  });
}

// ---- a module with several layers, and one without plasticity

function groupPanels(node) {
  view.follow = null;
  const layers = node.layers, total = layers.reduce((sum, layer) => sum + layer.size, 0), sample = history.steps.length - 1;
  const cut = node.name.lastIndexOf('.');
  const parts = [head(node.name ? (cut < 0 ? history.model : node.name.slice(0, cut)) : 'the whole model', node.name ? node.label : history.model, node.kind,
    [chip(plural(layers.length, 'weight')), chip(`${compact(total)} synapses`), ...[...new Set(layers.flatMap(layer => layer.rules || []))].map(rule => chip(rule, true))])];
  if (!layers.length) return [...parts, element('p', { class: 'empty' }, 'No layer in this module carries plasticity.')];
  if (layers.length > 1) parts.push(strips(layers));
  const columns = SERIES.filter(([key]) => layers.some(layer => layer.numbers[key]));
  const rows = layers.map(layer => element('tr', { onclick: () => jump(layer) },
    element('td', {}, element('button', { type: 'button', title: visible(layer.label) }, visible(layer.label))),
    element('td', {}, visible(layer.type || '')), element('td', { class: 'n' }, compact(layer.size)),
    element('td', {}, sparkline(layer.factorBytes, FACTOR_BINS, sample, 96, 20)), element('td', { class: 'n' }, factor(lastOf(layer.numbers.factor_q50))),
    ...columns.map(([key]) => element('td', { class: 'n' }, percent(lastOf(layer.numbers[key]))))));
  const heads = [['Layer'], ['Type'], ['Synapses', 'n'], ['Factors now, 0 to 2'], ['Median', 'n'], ...columns.map(([, title]) => [title, 'n'])];
  parts.push(card('Layers', null, null, element('div', { class: 'scroll' }, element('table', {},
    element('thead', {}, element('tr', {}, ...heads.map(([text, kind]) => element('th', kind ? { class: kind, scope: 'col' } : { scope: 'col' }, text)))), element('tbody', {}, ...rows)))));
  return parts;
}

function jump(layer) {
  const node = nodeOf(layer.label);
  for (let up = node.parent; up; up = up.parent) tree.open.add(up.name);
  drawTree();
  choose(node);
  focusRow(node.name);
}

// Names of at most so many characters, all different: of a long one its end; where ends are equal, the
// parts in which those names differ and the last one; and where that does not do, its number.
function shorten(names, most) {
  const end = (text, room) => (text.length > room ? `…${text.slice(1 - room)}` : text);
  const ends = names.map(name => end(name, most));
  const parted = names.map((name, i) => {
    const alike = names.filter((_, k) => ends[k] === ends[i]).map(other => other.split('.'));
    if (alike.length === 1) return ends[i];
    const parts = name.split('.');
    const kept = parts.map((part, place) => place === parts.length - 1 || alike.some(other => other[place] !== part));
    return parts.reduce((text, part, place) => (kept[place] ? `${text}${place && kept[place - 1] ? '.' : ''}${part}` : text.endsWith('…') ? text : `${text}…`), '');
  });
  return parted.map((text, i) => (text.length > most || parted.indexOf(text) !== parted.lastIndexOf(text)
    ? `${i + 1} ${end(names[i], most - 1 - String(i + 1).length)}` : text));
}

// Every layer one line, every sample one cell: the median factor.
function strips(layers) {
  const tall = Math.max(3, Math.min(20, Math.floor(420 / layers.length))), height = tall * layers.length;
  const names = shorten(layers.map(layer => visible(layer.label)), 20);
  const top = Math.max(1, ...layers.map(layer => Math.max(...(layer.numbers.factor_q50 || []).map(value => value ?? 0), 0)));
  const chart = timeChart({
    height, labelled: true, left: tall >= 12 ? 150 : 44, label: 'Median factor of each layer over the steps',
    draw(svg, scale, width, canvas) {
      const ratio = devicePixelRatio || 1, colours = table(RAMPS);
      canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
      canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
      const context = canvas.getContext('2d');
      layers.forEach((layer, i) => (layer.numbers.factor_q50 || []).forEach((value, s) => {
        if (value === null) return;
        const c = 3 * Math.round(Math.min(value / top, 1) * 255), left = Math.round(scale.edges[s] * ratio);
        context.fillStyle = `rgb(${colours[c]},${colours[c + 1]},${colours[c + 2]})`;
        context.fillRect(left, Math.round(i * tall * ratio), Math.max(1, Math.round(scale.edges[s + 1] * ratio) - left), Math.max(1, Math.round((i + 1) * tall * ratio) - Math.round(i * tall * ratio) - (tall > 6 ? ratio : 0)));
      }));
      if (tall >= 12) layers.forEach((layer, i) => svg.append(shape('text', { class: 'mono', x: scale.left - 10, y: (i + .5) * tall + 4, 'text-anchor': 'end' }, names[i])));
    },
    tell: s => layers.slice(0, 12).map(layer => `${visible(layer.label)}: ${factor(at(layer.numbers.factor_q50, s))}`).join('\n') + (layers.length > 12 ? `\n… ${layers.length - 12} more` : ''),
  });
  return card('Plasticity of each layer, step by step', 'Median factor: one line a layer, in the order of the table below.', [ramp(RAMPS, '0', number(top, 2))], chart);
}

function skippedPanels(node) {
  view.follow = null;
  const cut = node.name.lastIndexOf('.');
  return [head(cut < 0 ? history.model : node.name.slice(0, cut), node.label, node.kind, []),
    element('p', { class: 'warn' }, element('b', {}, 'This layer carries no plasticity. '), visible(node.skipped.reason || 'No reason was recorded.'))];
}
