// Start: read the history, set the theme, draw.

let history = null;

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  if (history) redraw();
}

function redraw() {
  drawTree();
  if (tree.chosen) showNode(tree.chosen);
}

function setLog(log) {
  view.log = log;
  $('log').setAttribute('aria-pressed', String(log));
  $('linear').setAttribute('aria-pressed', String(!log));
  for (const chart of view.charts) chart.render();
}

function fail(title, text) {
  $('panels').replaceChildren(element('header', { class: 'head' }, element('h2', {}, title)), element('p', { class: 'warn' }, text));
}

const night = matchMedia('(prefers-color-scheme: dark)');
let picked = false;
setTheme(night.matches ? 'dark' : 'light');
night.addEventListener('change', () => { if (!picked) setTheme(night.matches ? 'dark' : 'light'); });
$('theme').addEventListener('click', () => { picked = true; setTheme(theme() === 'dark' ? 'light' : 'dark'); });
$('log').addEventListener('click', () => setLog(true));
$('linear').addEventListener('click', () => setLog(false));

// How samples lie: a long run's are thinned.
function every(steps) {
  if (!history.every) return '';
  const steady = history.every === 1 ? 'each step' : `every ${count(history.every)} steps`;
  const thinned = steps.length < Math.floor(steps[steps.length - 1] / history.every);
  // A run that was resumed may have been looked at more or less often before.
  if (!thinned && steps.slice(2).some((step, place) => step - steps[place + 1] !== history.every)) return '';
  return thinned ? `, evenly in the logarithm of the step (taken ${steady}, then thinned)` : `, one ${steady}`;
}

function start() {
  try {
    history = JSON.parse($('history').textContent);
    history.layers.forEach(prepare);
  } catch (error) {
    history = null;
    fail('This page is damaged', `Its history cannot be read: ${error.message}. Write it again with biofx report.`);
    return;
  }
  const { steps, layers } = history;
  $('model').textContent = visible(history.model);
  document.title = `${visible(history.model)} · a synapse’s life`;
  const total = layers.reduce((sum, layer) => sum + layer.size, 0);
  $('run').textContent = `${compact(total)} synapses in ${plural(layers.length, 'weight')}`
    + (steps.length ? ` · ${plural(Math.max(steps[steps.length - 1], ...layers.map((layer) => layer.after?.step ?? 0)), 'step')}` : '');
  $('foot').textContent = `${plural(steps.length, 'sample')}${every(steps)}`
    + `${history.seed === undefined ? '' : ` · seed ${history.seed}`} · biofx ${visible(history.biofx || '?')}. `
    + 'Factors, weights and updates are those of up to 4,096 synapses of each layer.';
  openTree();
  drawTree();
  setLog(false);
  if (!steps.length) {
    fail('Nothing was recorded yet', `A recorder looks after ${history.every === 1 ? 'each step' : `the first step and then every ${count(history.every || 50)} steps`}; this run was saved before its first.`);
    return;
  }
  const wanted = nodeOf(decodeURIComponent(location.hash.slice(1)));
  const largest = layers.reduce((best, layer) => (!best || layer.size > best.size ? layer : best), null);
  choose(location.hash.length > 1 && wanted || (largest && nodeOf(largest.label)) || tree.root);
  tree.focus = tree.chosen.name;
  drawTree();

  let waiting = 0;
  new ResizeObserver(() => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => { for (const chart of view.charts) chart.render(); });
  }).observe($('panels'));
  document.addEventListener('keydown', event => {
    if (event.key === '/' && !/^(INPUT|TEXTAREA)$/.test(event.target.tagName)) { event.preventDefault(); $('filter').focus(); }
  });
}
start();
