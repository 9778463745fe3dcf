"""From the tree to rows: what is told once, and what a line can stand for.

The picture stays short by folding in steps; each step is taken only if the one before leaves too
many rows. No reason is lost by it: those stand below the picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from biofx.diff.node import DiffNode
from biofx.diff.rows import Row, count_of, fold_row, gap_row, run_row, tally
from biofx.diff.text import without_places

# Rows of a picture that need not be folded further.
ENOUGH = 48
LONGEST_PERIOD = 6


@dataclass(frozen=True)
class Folding:
    """How hard to fold.

    Attributes:
        everything: show every node of every graph.
        sizes: nodes must have equal sizes to be told once.
        cousins: a block is told once, wherever else in the model it stands.
        depth: modules at this depth become one row (0: at none).
        longest: children of one module before the middle is left out (0: any number).
    """

    everything: bool = False
    sizes: bool = True
    cousins: bool = False
    depth: int = 0
    longest: int = 0


@dataclass
class Item:
    """One node, or a run of nodes that go on one line."""

    nodes: list[DiffNode]
    key: int = 0

    @property
    def run(self) -> bool:
        return len(self.nodes) > 1


@dataclass
class Emitter:
    """Emits the rows of a tree for one way of folding, and says what belongs on one row."""

    folding: Folding
    rows: list[Row] = field(default_factory=list)
    keys: dict[object, int] = field(default_factory=dict)
    known: dict[int, int] = field(default_factory=dict)  # id(node) -> key
    seen: dict[int, str] = field(default_factory=dict)  # key -> where it is unfolded

    def node(self, node: DiffNode, lasts: tuple[bool, ...]) -> None:
        """A row for the node, and rows for what is inside it."""
        items = self.items(node)
        name = node.name
        while self.is_passage(node, items) and lasts and not self.folding.everything:
            node = items[0].nodes[0]
            name = f"{name}.{node.name}"
            items = self.items(node)
        status = node.status if node.status != "unchanged" or node.quiet else ""
        row = Row(lasts=lasts, status=status, name=name, node=node, shape=node.shape)
        row.count = 0 if node.again else node.count
        self.rows.append(row)
        if not items:
            return
        if self.folding.depth and len(lasts) >= self.folding.depth:
            row.name = f"{name}: {tally(node)}"
            row.node, row.count = None, count_of([node])
            return
        if self.folding.cousins and node.path:
            key = self._key(node)
            if key in self.seen and len(items) > 1:
                row.like = self.seen[key]
                return
            self.seen.setdefault(key, node.path)
        self._children(items, lasts)

    def is_passage(self, node: DiffNode, items: list[Item]) -> bool:
        """Whether a module is nothing but the way to another one inside it."""
        inner = items[0].nodes[0] if len(items) == 1 and not items[0].run else None
        return (
            inner is not None
            and not inner.again
            and node.status == "unchanged"
            and (inner.path or "").startswith(f"{node.path}.")
        )

    def _children(self, items: list[Item], lasts: tuple[bool, ...]) -> None:
        groups = list(self.groups(items))
        gap = None
        longest = self.folding.longest
        if longest and len(groups) > longest:
            head, tail = groups[: longest * 2 // 3], groups[-(longest // 3) :]
            middle = groups[len(head) : len(groups) - len(tail)]
            gap = (len(head), [n for part in middle for item in part[0] for n in item.nodes])
            groups = head + tail
        for position, (part, period) in enumerate(groups):
            last = position == len(groups) - 1
            if gap is not None and position == gap[0]:
                self.rows.append(gap_row(gap[1], (*lasts, False)))
            self._group(part, period, lasts, last)

    def _group(self, items: list[Item], period: int, lasts: tuple[bool, ...], last: bool) -> None:
        """Items that repeat the first `period` of them; 0: a single one."""
        single = period == 0
        shown = items if single else items[:period]
        merged = (
            period == 1
            and self.folding.cousins
            and items[0].key in self.seen
            and bool(self.items(items[0].nodes[0]))
        )
        if merged:
            rest, like = items, self.seen[items[0].key]
        else:
            for position, item in enumerate(shown):
                ends = last and single and position == len(shown) - 1
                self._item(item, (*lasts, ends))
            if single:
                return
            rest, like = items[period:], ""
        folded = fold_row([i.nodes for i in shown], [i.nodes for i in rest], like, (*lasts, last))
        self.rows.append(folded)

    def _item(self, item: Item, lasts: tuple[bool, ...]) -> None:
        if item.run:
            self.rows.append(run_row(item.nodes, lasts))
        else:
            self.node(item.nodes[0], lasts)

    # --- what goes on one line -------------------------------------------------------------------

    def items(self, node: DiffNode) -> list[Item]:
        if self.folding.everything:
            return [Item([child]) for child in node.children]
        if node.quiet or node.again:
            return []
        items: list[Item] = []
        run: list[DiffNode] = []
        for child in node.children:
            if child.plumbing:
                continue
            if node.status in ("replaced", "split", "skipped") and child.path is None:
                continue  # what a layer is made of
            if child.quiet or (child.again and child.status == "unchanged"):
                run.append(child)
                continue
            items += self._run_item(run)
            run = []
            items.append(Item([child], self._key(child)))
        return items + self._run_item(run)

    def _run_item(self, run: list[DiffNode]) -> list[Item]:
        return [Item(run, self._intern(tuple(map(self._key, run))))] if run else []

    def groups(self, items: list[Item]) -> "list[tuple[list[Item], int]]":
        """Consecutive items, grouped where they repeat: (items, length of the period or 0)."""
        if self.folding.everything:
            return [([item], 0) for item in items]
        groups = []
        start = 0
        keys = [item.key for item in items]
        while start < len(items):
            period, times = self._repeats(items, keys, start)
            if period:
                groups.append((items[start : start + period * times], period))
                start += period * times
            else:
                groups.append(([items[start]], 0))
                start += 1
        return groups

    def _repeats(self, items: list[Item], keys: list[int], start: int) -> tuple[int, int]:
        best, saved = (0, 0), 1
        for period in range(1, min(LONGEST_PERIOD, (len(keys) - start) // 2) + 1):
            if keys[start] != keys[start + period]:
                continue
            end = start + period
            while end < len(keys) and keys[end] == keys[end - period]:
                end += 1
            times = (end - start) // period
            if times < 2:
                continue
            heights = [self._height(item) for item in items[start : start + period]]
            gain = sum(heights) * (times - 1)
            # a few layers are not worth a fold; a block is
            if gain > max(saved, 6 if max(heights) < 3 else 1):
                best, saved = (period, times), gain
        return best

    def _height(self, item: Item) -> int:
        if item.run:
            return 1
        return 1 + sum(map(self._height, self.items(item.nodes[0])))

    # --- what looks the same ---------------------------------------------------------------------

    def _intern(self, value: object) -> int:
        return self.keys.setdefault(value, len(self.keys))

    def _key(self, node: DiffNode) -> int:
        """Equal for nodes that look the same but for their names and places."""
        known = self.known.get(id(node))
        if known is None:
            label = node.new if node.path is None else ""
            parts = [
                (child.name if child.path is not None else "", self._key(child))
                for child in node.children
                if not child.plumbing
            ]
            sizes = (node.shape, node.parameters) if self.folding.sizes else ()
            reason = without_places(node.reason or "")
            looks = (node.op, node.status, node.old, node.new, label, reason, node.settings)
            known = self._intern((looks, node.again, sizes, tuple(parts)))
            self.known[id(node)] = known
        return known


def rows_of(tree: DiffNode, full: bool) -> list[Row]:
    """The rows of a picture, folded as little as its length allows; not at all if `full`."""
    if full:
        return _emit(tree, Folding(everything=True))
    rows: list[Row] = []
    for folding in _steps(tree):
        rows = _emit(tree, folding)
        if len(rows) <= ENOUGH:
            break
    return rows


def _steps(tree: DiffNode) -> Iterator[Folding]:
    yield Folding()
    yield Folding(sizes=False)
    yield Folding(sizes=False, cousins=True)
    for depth in range(min(_depth(tree), 8), 0, -1):
        yield Folding(sizes=False, cousins=True, depth=depth)
    for depth in (2, 1):
        for longest in (ENOUGH - 4, ENOUGH // 2):
            yield Folding(sizes=False, cousins=True, depth=depth, longest=longest)


def _emit(tree: DiffNode, folding: Folding) -> list[Row]:
    emitter = Emitter(folding)
    emitter.node(tree, ())
    return emitter.rows


def _depth(node: DiffNode) -> int:
    return max((1 + _depth(child) for child in node.children), default=0)
