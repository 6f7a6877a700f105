"""Finds attention modules by their structure, and which rows and columns of which layers belong to each head.

Three linear layers that make queries, keys and values (or one that makes all three, laid out (3, heads, head width),
or one for queries and one for both others),
one that projects the heads, and an attribute that says how many heads there are or how wide one is. That the network
really runs with fewer heads, and that the others stay what they are, is for the caller to check.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

_FUSED = (("qkv",), ("to_qkv",), ("qkv_proj",), ("in_proj",))
_SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("to_q", "to_k", "to_v"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
)
_PAIRED = (("q", "kv"), ("to_q", "to_kv"), ("q_proj", "kv_proj"), ("query", "key_value"))
_PROJECTIONS = ("o_proj", "out_proj", "proj", "to_out", "out_lin", "out", "o", "dense")
_COUNTS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "heads")
_KEY_COUNTS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
_HEAD_WIDTHS = ("head_dim", "head_width", "attention_head_size", "head_size", "dim_head")
_WHOLE_WIDTHS = ("all_head_size", "attn_dim", "inner_dim")

Slots = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Attention:
    """The heads of one module. `rows` and `columns` say, by layer, which indices each head has in it.

    Of layers that make keys and values, `rows` are those of each of its `keys` heads, which may be fewer than `heads`;
    `fixed` are layers whose one head all queries share. `attributes` are (module, attribute, what each head of the keys
    takes of it): whole numbers that the forward may read; `width_attributes` what each channel of all heads takes.
    `why` says why the heads cannot be removed, if so; the rest is then incomplete.
    """

    name: str
    heads: int
    width: int
    rows: dict[str, Slots]
    columns: dict[str, Slots]
    attributes: tuple[tuple[str, str, int], ...] = ()
    why: str | None = None
    keys: int = 0
    width_attributes: tuple[tuple[str, str, int], ...] = ()
    fixed: tuple[str, ...] = ()

    @property
    def layers(self) -> set[str]:
        return {*self.rows, *self.columns, *self.fixed}


def attentions(network: nn.Module) -> Iterator[Attention]:
    """The attention modules of a network whose number of heads is known, in the order of its modules."""
    for path, module in network.named_modules():
        found = _attention(network, path, module)
        if found is not None:
            yield found


def _attention(network: nn.Module, path: str, module: nn.Module) -> Attention | None:
    linear = {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}
    made = next((names for names in (*_FUSED, *_SEPARATE, *_PAIRED) if all(name in linear for name in names)), None)
    if made is None:
        return None
    widths = [linear[name].out_features for name in made]
    keys = next((n for n in (_whole(module, name) for name in _KEY_COUNTS) if n), 0)
    heads, width = _heads(module, widths[0] // (3 if len(made) == 1 else 1), widths[0] if keys else 0, keys)
    if heads == 0:
        return None
    if not keys:
        keys = heads if len(made) == 1 else widths[1] // (width * (4 - len(made)))
    layers = [_join(path, name) for name in made]
    nothing: Slots = ((),) * heads
    inner = heads * width

    def refused(why: str) -> Attention:
        return Attention(path, heads, width, dict.fromkeys(layers, nothing), {}, why=why, keys=keys)

    expected = {
        1: [inner + 2 * keys * width], 2: [inner, 2 * keys * width], 3: [inner, keys * width, keys * width],
    }[len(made)]  # fmt: skip
    if widths != expected:
        parts = 3 if len(made) == 1 else 1
        return refused(f"its {heads} heads of {width} do not make up its {widths[0] // parts} channels")
    if heads == 1:
        return refused("it has one head")
    if heads % keys:
        return refused(f"its {heads} heads do not share its {keys} keys and values evenly")
    projection = _projection(network, path, inner)
    if projection is None:
        return refused("the layer that projects its heads was not found")
    # One layer for all three, laid out (query, key, value; head; channel), with 2 heads of 2 channels:
    #
    #     row of qkv    0  1 | 2  3 | 4  5 | 6  7 | 8  9 | 10 11
    #     made for      q h0 | q h1 | k h0 | k h1 | v h0 | v h1
    #
    # Head 0 has the rows 0 1 4 5 8 9, and the columns 0 1 of the projection. With three layers it has rows 0 1 of each.
    # Where queries share keys, a key's head has its rows for itself: that they go together follows from the products.
    columns = _blocks(heads, width)
    of_keys = _blocks(keys, width)
    rows: dict[str, Slots] = {}
    if len(made) == 1 and keys == heads:
        rows[layers[0]] = tuple(tuple(p * inner + i for p in range(3) for i in columns[h]) for h in range(heads))
    elif len(made) == 1:
        shared = tuple(tuple(inner + p * keys * width + i for i in of_keys[k]) for p in range(2) for k in range(keys))
        rows[layers[0]] = (*columns, *(shared if keys > 1 else ()))
    elif len(made) == 2:
        both = tuple(tuple(p * keys * width + i for p in range(2) for i in of_keys[k]) for k in range(keys))
        rows = {layers[0]: columns, **({layers[1]: both} if keys > 1 else {})}
    else:
        rows = {layers[0]: columns, **(dict.fromkeys(layers[1:], of_keys) if keys > 1 else {})}
    fixed = tuple(layers[1:]) if keys == 1 and len(made) > 1 else ()
    if keys == 1 and len(made) == 1:
        return refused("one layer makes its queries and the one key and value that they share")
    # Only numbers that agree with what was found are mended: the name alone may mean something else. A head of the keys
    # takes its queries along.
    taken = heads // keys if keys > 1 else 1
    attributes = [(path, name, taken) for name in _COUNTS if _whole(module, name) == heads]
    attributes += [(path, name, 1) for name in _KEY_COUNTS if _whole(module, name) == keys and keys > 1]
    attributes += [(path, name, taken * width) for name in _WHOLE_WIDTHS if _whole(module, name) == inner]
    widths_of = [(path, name, 1) for name in _HEAD_WIDTHS if _whole(module, name) == width]
    widths_of += [(path, name, heads) for name in _WHOLE_WIDTHS if _whole(module, name) == inner]
    return Attention(
        path, heads, width, rows, {projection: columns}, tuple(attributes), keys=keys,
        width_attributes=tuple(widths_of), fixed=fixed,
    )  # fmt: skip


def _blocks(count: int, width: int) -> Slots:
    return tuple(tuple(range(h * width, (h + 1) * width)) for h in range(count))


def _heads(module: nn.Module, inner: int, made: int, keys: int) -> tuple[int, int]:
    """How many heads a module has and how wide one is; (0, 0) if it does not say.

    `inner` is what queries have if keys have as many; with `keys` heads of their own, one layer makes `made` of all.
    """
    count = next((n for n in (_whole(module, name) for name in _COUNTS) if n), 0)
    width = next((n for n in (_whole(module, name) for name in _HEAD_WIDTHS) if n), 0)
    if count and width:
        return count, width
    if count and keys and made % (count + 2 * keys) == 0 and inner % count:
        return count, made // (count + 2 * keys)
    if count:
        return count, width or inner // count
    return (inner // width, width) if width else (0, 0)


def _whole(module: nn.Module, name: str) -> int:
    """A whole number that the module keeps as a plain attribute, or 0."""
    # Of the instance itself: a property follows from other attributes and cannot be set.
    value = vars(module).get(name, 0)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _projection(network: nn.Module, path: str, inner: int) -> str | None:
    """The linear layer that reads the heads: a child, or one of a module `output` beside the attention."""
    for name in _PROJECTIONS:
        for candidate in (_join(path, name), _join(path, f"{name}.0")):
            if _reads(network, candidate, inner):
                return candidate
    beside = _join(path.rpartition(".")[0], "output.dense")
    return beside if path and _reads(network, beside, inner) else None


def _reads(network: nn.Module, path: str, inner: int) -> bool:
    try:
        layer = network.get_submodule(path)
    except AttributeError:
        return False
    return isinstance(layer, nn.Linear) and layer.in_features == inner


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
