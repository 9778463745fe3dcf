// The model's tree: modules that hold layers, each layer with its factors.

function buildTree() {
  const root = { name: '', label: history.model, kind: '', children: new Map(), depth: 0 };
  const add = (name, leaf) => {
    let node = root, path = '';
    const parts = name.split('.');
    parts.forEach((part, i) => {
      path = path ? `${path}.${part}` : part;
      if (!node.children.has(part)) {
        node.children.set(part, { name: path, label: part, kind: history.tree[path] || '', children: new Map(), parent: node });
      }
      node = node.children.get(part);
      if (i === parts.length - 1) Object.assign(node, leaf);
    });
  };
  for (const layer of history.layers) add(layer.label, { layer, kind: layer.type || '' });
  for (const skipped of history.skipped) {
    if (skipped && typeof skipped.name === 'string') add(skipped.name || 'model', { skipped, kind: skipped.type || '' });
  }
  // A chain of modules that hold one thing each is one row.
  const settle = (node, depth) => {
    node.depth = depth;
    let children = [...node.children.values()];
    if (node.parent && children.length === 1 && !node.layer && children[0].children.size) {
      const [only] = children;
      Object.assign(node, { label: `${node.label}.${only.label}`, name: only.name, kind: only.kind, children: only.children });
      for (const child of only.children.values()) child.parent = node;
      return settle(node, depth);
    }
    node.list = children;
    for (const child of children) settle(child, depth + 1);
    node.layers = [...(node.layer ? [node.layer] : []), ...children.flatMap(child => child.layers)];
    return node;
  };
  return settle(root, 0);
}

const tree = { root: null, open: new Set(), chosen: null, filter: '', rows: [], focus: '' };

function openTree() {
  tree.root = buildTree();
  // As many levels as leave the list short enough to be read.
  let level = [tree.root], rows = 1;
  while (level.length) {
    const next = level.flatMap(node => node.list);
    rows += next.length;
    if (rows > 60 && level[0] !== tree.root) break;
    for (const node of level) if (node.list.length) tree.open.add(node.name);
    level = next;
  }
  $('tree').addEventListener('keydown', treeKey);
  $('tree').addEventListener('click', event => {
    const row = event.target.closest('.row');
    if (!row) return;
    const node = tree.rows[Number(row.dataset.place)];
    if (event.target.closest('.fold') && node.list.length) toggle(node);
    else choose(node);
    focusRow(node.name);
  });
  $('filter').addEventListener('input', event => { tree.filter = event.target.value.trim().toLowerCase(); drawTree(); });
  $('filter').addEventListener('keydown', event => {
    if (event.key === 'Escape') { event.target.value = ''; tree.filter = ''; drawTree(); event.target.blur(); }
    if ((event.key === 'ArrowDown' || event.key === 'Enter') && tree.rows.length) {
      event.preventDefault();
      const found = tree.rows.find(node => node.layer || node.skipped) || tree.rows[0];
      choose(found);
      focusRow(found.name);
    }
  });
}

function drawTree() {
  const matches = node => !tree.filter || node.name.toLowerCase().includes(tree.filter) || node.kind.toLowerCase().includes(tree.filter);
  const keeps = node => matches(node) && node !== tree.root || node.list.some(keeps);
  tree.rows = [];
  const walk = node => {
    if (tree.filter && !keeps(node)) return;
    tree.rows.push(node);
    if (tree.filter ? node.list.some(keeps) : tree.open.has(node.name)) node.list.forEach(walk);
  };
  walk(tree.root);
  if (!tree.rows.some(node => node.name === tree.focus)) tree.focus = tree.rows.length ? tree.rows[0].name : '';
  const sample = history.steps.length - 1;
  $('tree').replaceChildren(...tree.rows.map((node, place) => {
    const folder = node.list.length > 0;
    const row = element('div', {
      class: `row${folder ? ' group' : ''}${node.skipped && !node.layer ? ' off' : ''}`,
      role: 'treeitem', 'data-place': place, 'aria-level': node.depth + 1,
      'aria-selected': String(node === tree.chosen),
      'aria-expanded': folder ? String(tree.filter ? true : tree.open.has(node.name)) : null,
      tabindex: node.name === tree.focus ? '0' : '-1',
      title: node.skipped && !node.layer ? `without plasticity: ${visible(node.skipped.reason)}` : visible(node.name || node.label),
    },
      element('span', { class: 'fold', 'aria-hidden': 'true' }, folder ? '▸' : ''),
      element('span', { class: 'name' }, visible(node.label)),
      element('span', { class: 'kind' }, visible(node.kind)));
    row.style.paddingLeft = `${6 + node.depth * 13}px`;
    if (node.layer) row.append(sparkline(node.layer.factorBytes, FACTOR_BINS, sample, 68, 18));
    else if (folder && !tree.open.has(node.name) && !tree.filter) row.append(element('span', { class: 'many' }, String(node.layers.length)), sparkline(together(node), FACTOR_BINS, 0, 68, 18));
    return row;
  }));
  if (!tree.rows.length) $('tree').append(element('p', { class: 'empty' }, 'No layer of this name.'));
}

// The factors of all layers of a module, each as heavy as it is large.
function together(node) {
  const sample = history.steps.length - 1, sum = new Float64Array(FACTOR_BINS);
  let size = 0;
  for (const layer of node.layers) {
    if (!layer.factorBytes || sample < 0) continue;
    for (let bin = 0; bin < FACTOR_BINS; bin++) sum[bin] += layer.size * (layer.factorBytes[sample * FACTOR_BINS + bin] / 255) ** 2;
    size += layer.size;
  }
  return size ? Uint8Array.from(sum, share => Math.round(255 * Math.sqrt(share / size))) : null;
}

const rowOf = name => $('tree').children[tree.rows.findIndex(node => node.name === name)];

function focusRow(name) {
  const before = rowOf(tree.focus);
  if (before) before.tabIndex = -1;
  tree.focus = name;
  const row = rowOf(name);
  if (row) { row.tabIndex = 0; row.focus({ preventScroll: true }); row.scrollIntoView({ block: 'nearest' }); }
}

function toggle(node, open = !tree.open.has(node.name)) {
  if (open) tree.open.add(node.name); else tree.open.delete(node.name);
  drawTree();
}

function treeKey(event) {
  const place = tree.rows.findIndex(node => node.name === tree.focus), node = tree.rows[place];
  if (!node || event.ctrlKey || event.metaKey || event.altKey) return;
  const go = target => { if (target) { choose(target); focusRow(target.name); } };
  const keys = {
    ArrowDown: () => go(tree.rows[place + 1]),
    ArrowUp: () => go(tree.rows[place - 1]),
    Home: () => go(tree.rows[0]),
    End: () => go(tree.rows[tree.rows.length - 1]),
    ArrowRight: () => {
      if (node.list.length && !tree.open.has(node.name)) { toggle(node, true); focusRow(node.name); } else if (node.list.length) go(tree.rows[place + 1]);
    },
    ArrowLeft: () => {
      if (node.list.length && tree.open.has(node.name) && !tree.filter) { toggle(node, false); focusRow(node.name); }
      else go(tree.rows.slice(0, place).reverse().find(other => other.depth < node.depth));
    },
    Enter: () => choose(node),
    ' ': () => choose(node),
  };
  if (!keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
}

function choose(node) {
  if (tree.chosen === node) return;
  const before = tree.chosen && rowOf(tree.chosen.name);
  if (before) before.setAttribute('aria-selected', 'false');
  tree.chosen = node;
  const row = rowOf(node.name);
  if (row) row.setAttribute('aria-selected', 'true');
  showNode(node);
  try { window.history.replaceState(null, '', `#${encodeURIComponent(node.name)}`); } catch { /* in a frame without an address */ }
}

function nodeOf(name) {
  let found = null;
  const walk = node => { if (node.name === name) found = node; else node.list.forEach(walk); };
  walk(tree.root);
  return found;
}
