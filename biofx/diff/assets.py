"""What the page of a diff looks like, and how it moves. Everything is inside `.biofx`."""

STYLE = """
.biofx {
  color-scheme: light dark;
  --fg: light-dark(#1b1f24, #e4e8ec); --soft: light-dark(#656d76, #8d96a0);
  --bg: light-dark(#fff, #0f1216); --line: light-dark(#e2e5e9, #262c33);
  --hover: light-dark(#f4f6f8, #181d23); --bar: light-dark(#0e749022, #22d3ee2e);
  --plastic: light-dark(#0e7490, #5fd0e6); --split: light-dark(#15803d, #6ddb8f);
  --skipped: light-dark(#a16207, #f0c151); --opaque: light-dark(#a21caf, #e58bf0);
  --alarm: light-dark(#b42318, #ff8a80);
  font: 13px/1.5 ui-sans-serif, system-ui, -apple-system, "Segoe UI", "Helvetica Neue", sans-serif;
  color: var(--fg); background: var(--bg); padding: 20px 24px; border-radius: 8px;
  container-type: inline-size;
}
body[data-jp-theme-light="true"] .biofx, body.vscode-light .biofx { color-scheme: light; }
body[data-jp-theme-light="false"] .biofx, body.vscode-dark .biofx { color-scheme: dark; }
body.biofx-page { margin: 0; background: light-dark(#fff, #0f1216); color-scheme: light dark; }
.biofx-page > .biofx { max-width: 1180px; margin: 0 auto; padding: 32px 28px 64px; }
.biofx * { box-sizing: border-box; }
.biofx.biofx code, .biofx .size, .biofx .name { font-family: ui-monospace, SFMono-Regular, Menlo,
  Consolas, "DejaVu Sans Mono", monospace; font-size: 12px; background: none; padding: 0;
  color: inherit; }
.biofx h1 { font-size: 22px; line-height: 1.2; margin: 0 0 14px; font-weight: 650; color: inherit;
  letter-spacing: -.01em; overflow-wrap: anywhere; }
.biofx h2 { font-size: 13px; margin: 28px 0 8px; font-weight: 650; color: inherit; }
.biofx .banner { margin: 0 0 18px; padding: 10px 14px; border-left: 3px solid var(--opaque);
  background: var(--hover); border-radius: 0 6px 6px 0; }
.biofx .facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr));
  gap: 12px 28px; margin: 0 0 22px; }
.biofx.biofx .facts :is(dl, dt, dd) { float: none; display: block; width: auto; }
.biofx .facts dt { color: var(--soft); font-size: 11px; font-weight: 400; margin: 0; }
.biofx .facts dd { margin: 0; overflow-wrap: anywhere; }
.biofx .facts .alarm { color: var(--alarm); }
.biofx .tools { display: flex; flex-wrap: wrap; gap: 8px 10px; align-items: center;
  position: sticky; top: 0; z-index: 2; background: var(--bg); padding: 8px 0; }
.biofx input { flex: 1 1 200px; max-width: 320px; font: inherit; color: inherit;
  background: var(--bg); border: 1px solid var(--line); border-radius: 6px; padding: 5px 10px; }
.biofx button { font: inherit; color: var(--soft); background: none; cursor: pointer;
  border: 1px solid var(--line); border-radius: 6px; padding: 4px 9px; margin: 0 6px 0 0; }
.biofx button b { font-weight: 600; color: var(--fg); }
.biofx button:hover, .biofx button[aria-pressed="true"] { background: var(--hover);
  color: var(--fg); }
.biofx button[aria-pressed="true"] { border-color: currentColor; }
.biofx .ends { margin-left: auto; }
.biofx .ends button:last-child { margin: 0; }
.biofx :focus-visible { outline: 2px solid var(--plastic); outline-offset: 1px; }
.biofx i { display: inline-block; width: 8px; height: 8px; border-radius: 50%; margin-right: 8px;
  border: 1.5px solid transparent; flex: none; }
.biofx button.replaced > i, .biofx .row.replaced .name > i { background: var(--plastic); }
.biofx button.split > i, .biofx .row.split .name > i { background: var(--split); }
.biofx .row.inserted .name > i { border-color: var(--split); }
.biofx button.skipped > i, .biofx .row.skipped .name > i { border-color: var(--skipped); }
.biofx button.opaque > i, .biofx .row.opaque .name > i { background: var(--opaque);
  border-radius: 1px; }
.biofx .row.fold .name > i { border: 0; background: radial-gradient(circle, var(--soft) 1px,
  transparent 1.6px) 0 0 / 4px 4px; border-radius: 0; }
.biofx .tree { border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); }
.biofx .shaped { --output: 120px; }
.biofx .row { display: grid; align-items: center; min-height: 26px; column-gap: 16px;
  grid-template-columns: minmax(180px, 1fr) minmax(80px, 170px) minmax(150px, 250px) 110px
  var(--output,);
  padding: 0 6px; border-radius: 4px; }
.biofx summary { list-style: none; cursor: pointer; }
.biofx summary::-webkit-details-marker { display: none; }
.biofx .row:hover { background: var(--hover); }
.biofx .titles, .biofx .titles:hover { color: var(--soft); font-size: 11px; background: none;
  border-bottom: 1px solid var(--line); border-radius: 0; }
.biofx .titles > :first-child { padding-left: 16px; }
.biofx .name { display: flex; align-items: center; min-width: 0; white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis; padding-left: calc(var(--d) * 18px + 16px);
  position: relative; background: repeating-linear-gradient(to right, var(--line) 0 1px,
  transparent 1px 18px) 19px 0 / calc(var(--d) * 18px) 100% no-repeat; align-self: stretch; }
.biofx summary > .row .name::before { content: ""; position: absolute; width: 5px; height: 5px;
  left: calc(var(--d) * 18px + 3px); border: solid var(--soft); border-width: 0 1.5px 1.5px 0;
  transform: rotate(-45deg); transition: transform .12s; }
.biofx details[open] > summary > .row .name::before { transform: rotate(45deg); }
.biofx .wide .name { grid-column: span 2; }
.biofx .wide .type { display: none; }
.biofx .text, .biofx .told { overflow: hidden; text-overflow: ellipsis; min-width: 0; }
.biofx .type, .biofx .size { color: var(--soft); white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
.biofx .syn { position: relative; padding: 1px 6px; min-width: 0; align-self: stretch;
  display: flex; align-items: center; gap: 10px; white-space: nowrap; }
.biofx .syn::before { content: ""; position: absolute; inset: 4px auto 4px 0; border-radius: 3px;
  width: var(--share, 0); background: var(--bar); z-index: 0; }
.biofx .syn > * { position: relative; }
.biofx .syn b { font-weight: 600; font-variant-numeric: tabular-nums; }
.biofx .row.unchanged, .biofx .row.fold { color: var(--soft); }
.biofx .row.inner .name { font-weight: 600; }
.biofx .row.unchanged .name > i { border-color: var(--line); }
.biofx .row.inner .name > i { display: none; }
.biofx .place { display: none; position: absolute; right: 0; padding-left: 10px; font-size: 11px;
  color: var(--soft); background: var(--hover); }
.biofx .row:hover .place { display: block; }
.biofx .why { flex: none; line-height: 1.25; color: var(--skipped); cursor: help;
  border-bottom: 1px dotted; }
.biofx .row.split .why, .biofx .row.replaced .why { color: var(--soft); }
.biofx .row.opaque .why { color: var(--opaque); }
.biofx .tip { display: none; position: absolute; top: 100%; left: -8px; z-index: 3;
  width: max-content; max-width: 340px; white-space: normal; overflow-wrap: anywhere;
  padding: 7px 10px; border-radius: 6px; color: var(--fg); background: var(--bg);
  border: 1px solid var(--line); box-shadow: 0 4px 16px #0003; font-weight: 400; }
.biofx .why:hover .tip, .biofx .why:focus .tip { display: block; }
.biofx.biofx .reasons { border-collapse: collapse; width: 100%; table-layout: auto; margin: 0;
  font: inherit; color: inherit; }
.biofx.biofx .reasons td { text-align: left; vertical-align: top; padding: 5px 16px 5px 0;
  background: none; border: 0; border-top: 1px solid var(--line); line-height: inherit;
  overflow-wrap: anywhere; }
.biofx tr { background: none !important; }
.biofx.biofx .reasons td.label { color: var(--soft); white-space: nowrap; }
.biofx ul { margin: 0; padding: 0; list-style: none; }
.biofx .meaning { margin: 2px 0 12px; color: var(--soft); }
.biofx .none { padding: 8px 22px; margin: 0; color: var(--soft); }
.biofx [hidden] { display: none !important; }
@container (max-width: 760px) {
  .biofx .row { grid-template-columns: minmax(150px, 1fr) minmax(130px, 190px); }
  .biofx .wide .name { grid-column: auto; }
  .biofx .type, .biofx .size, .biofx .titles > :nth-child(2), .biofx .titles > :nth-child(n+4) {
    display: none; }
}
@media (prefers-reduced-motion: reduce) { .biofx * { transition: none !important; } }
@media print { .biofx .tools { display: none; } }
"""

SCRIPT = """
for (const root of document.querySelectorAll(".biofx:not([data-ready])")) {
  root.dataset.ready = "";
  const search = root.querySelector("input"), none = root.querySelector(".none");
  const rows = [...root.querySelectorAll(".tree .row:not(.titles)")];
  const all = [...root.querySelectorAll(".tree details")];
  const before = new Map(all.map(part => [part, part.open]));
  const path = row => {
    const names = [];
    for (let part = row.closest("details"); part; part = part.parentElement.closest("details"))
      if (!part.matches(".group")) names.unshift(nameOf(part.querySelector(".row")));
    if (names.at(-1) !== nameOf(row)) names.push(nameOf(row));
    return names.join(".");
  };
  const nameOf = row => row.querySelector(".text").textContent;
  const texts = new Map();
  let only = "";
  const show = () => {
    const wanted = search.value.trim().toLowerCase().split(/\\s+/).filter(Boolean);
    const active = wanted.length > 0 || only !== "";
    let found = 0;
    for (const part of all) part.hidden = active;
    for (const row of rows) {
      let hit = !active;
      if (active && !(row.dataset.s === "fold")) {
        if (!texts.has(row)) {
          const name = row.matches(".wide:not(.inner)") ? "" : path(row) + " ";
          texts.set(row, (name + row.textContent).toLowerCase());
        }
        hit = (!only || row.dataset.s === only) && wanted.every(w => texts.get(row).includes(w));
      }
      row.hidden = !hit;
      if (!hit || !active) continue;
      found++;
      for (let part = row.closest("details"); part; part = part.parentElement.closest("details")) {
        part.hidden = false;
        part.open = part.firstElementChild.firstElementChild !== row || part.open;
        part.firstElementChild.firstElementChild.hidden = false;
      }
    }
    if (!active) for (const part of all) part.open = before.get(part);
    none.hidden = found > 0 || !active;
  };
  search.addEventListener("input", show);
  search.addEventListener("keydown", event => {
    if (event.key === "Escape") { search.value = ""; show(); }
  });
  const chips = [...root.querySelectorAll("[data-only]")];
  for (const chip of chips) chip.addEventListener("click", () => {
    only = only === chip.dataset.only ? "" : chip.dataset.only;
    for (const other of chips) other.setAttribute("aria-pressed", other.dataset.only === only);
    show();
  });
  for (const button of root.querySelectorAll("[data-all]")) button.addEventListener("click", () => {
    for (const part of all) part.open = button.dataset.all === "open";
  });
  if (document.body.matches(".biofx-page")) document.addEventListener("keydown", event => {
    if (event.key === "/" && document.activeElement !== search) {
      event.preventDefault();
      search.focus();
    }
  });
}
"""
