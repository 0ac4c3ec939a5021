"""A first draft of a family file for an architecture that has none, from transformers' own code.

The model of a config is built on the meta device, once as it is and once for every whole number in
the config with that number changed; a dim follows the keys that change it. What no shape shows is
taken from names or left to the reader, and marked with a question mark: which of two equal sizes a
dim is, how fused projections are interleaved, what a norm puts out, how positions turn. The law: a
draft is printed, never used; code from a checkpoint is never run.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.core_model_loading import revert_weight_conversion

from growkit.algebra.expression import parse
from growkit.errors import FamilyError
from growkit.verify.load import build, reason, silence, token_table

# What config keys of this field are called, in order: (pattern, axis, kind)
KEYS: Sequence[tuple[str, str, str]] = (
    (r"(num_|n_)?(key_value|kv)_heads|num_key_value_heads", "kv_heads", "kv_heads"),
    (r"(decoder)_(attention_)?heads", "decoder_heads", "heads"),
    (r"(encoder)_(attention_)?heads", "encoder_heads", "heads"),
    (r"(num_(attention_)?|n_)heads?", "heads", "heads"),
    (r"head_dim|d_kv", "head_dim", "head_dim"),
    (r"decoder_ffn_dim", "decoder_mlp", "neurons"),
    (r"encoder_ffn_dim", "encoder_mlp", "neurons"),
    (r"moe_intermediate_size", "expert_mlp", "neurons"),
    (r"shared_expert_intermediate_size", "shared_mlp", "neurons"),
    (r"intermediate_size|n_inner|d_ff|ffn_dim|ffn_hidden_size|hidden_dim", "mlp", "neurons"),
    (r"hidden_size|n_embd|d_model|dim", "hidden", "stream"),
    (r"embedding_size|word_embed_proj_dim", "emb", "latent"),
    (r"\w*lora_rank", "", "latent"),
    (r"vocab_size", "vocab", "table"),
    (r"max_position_embeddings|n_positions", "positions", "table"),
    (r"type_vocab_size", "types", "table"),
    (r"num_decoder_layers|decoder_layers", "decoder_layers", "layers"),
    (r"encoder_layers", "encoder_layers", "layers"),
    (r"num_(hidden_)?layers|n_layers?", "layers", "layers"),
    (r"num_(local_|routed_)?experts|n_routed_experts", "experts", "experts"),
)
# Sizes of the draft's models: every axis another one, and products of them different, too.
SIZES: Mapping[str, int] = {
    "heads": 6, "kv_heads": 2, "head_dim": 20, "hidden": 96, "emb": 44, "vocab": 197,
    "positions": 89, "types": 3, "experts": 5, "layers": 2,
}  # fmt: skip
NEURONS = (130, 142, 154, 166)
ATTENTION = re.compile(r"attn|attention|selfattention", re.I)
PART = {  # what the last words of a module's name say it makes
    "qkv": re.compile(r"(c_attn|qkv|qkv_proj|wqkv|query_key_value|in_proj)$", re.I),
    "q": re.compile(r"(^|[._])(q|query|wq|q_proj|query_proj|q_lin)$", re.I),
    "k": re.compile(r"(^|[._])(k|key|wk|k_proj|key_proj|k_lin)$", re.I),
    "v": re.compile(r"(^|[._])(v|value|wv|v_proj|value_proj|v_lin)$", re.I),
    "o": re.compile(r"(^|[._])(o|wo|o_proj|out_proj|out_lin|c_proj|dense|output\.dense)$", re.I),
}
KEY_NORM = re.compile(r"(^|[._])k(ey)?_?(layer)?norm", re.I)


# -- the model on the meta device ------------------------------------------------------------------

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class MetaModel:
    """What a config builds: shapes under the names on disk, and the classes of modules."""

    shapes: Shapes
    classes: Mapping[str, str]  # module → class name
    embedding: str  # the module of the token table, and that of the output head, or empty
    head: str


def meta_model(config: Mapping[str, Any]) -> MetaModel:
    """Build a config's model on the meta device: it has shapes and no values.

    Raises FamilyError if transformers cannot build it.
    """
    with silence():
        try:
            with torch.device("meta"):
                model = build(config)
            state = revert_weight_conversion(model, model.state_dict())
        except Exception as error:  # transformers raises all kinds; each is about this config
            raise FamilyError(
                f"transformers cannot build a model of this config: {reason(error)}",
                hint="infer needs a model that transformers itself knows",
            ) from error
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    names = {id(module): name for name, module in model.named_modules()}
    table = names.get(id(token_table(model)), "")
    output: Any = model.get_output_embeddings() if table else None
    head = names.get(id(output), "")
    if head and f"{head}.weight" not in shapes:  # it has another name on disk
        shape = tuple(output.weight.shape)
        alike = (n for n, s in shapes.items() if s == shape and n != f"{table}.weight")
        head = next(alike, "").removesuffix(".weight")
    classes = {name: type(module).__name__ for name, module in model.named_modules()}
    return MetaModel(shapes, classes, table, head)


# -- the draft -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Draft:
    """A drafted family file, and how many of its lines need a look."""

    text: str
    doubts: int


def draft_family(config: Mapping[str, Any]) -> Draft:
    """Draft a family file for a config. Raises FamilyError if transformers cannot build its model.

    Needs transformers with the class that the config names; nothing is downloaded.
    """
    axes = _axes(config)
    base = _with_sizes(config, axes)
    model = meta_model(base)
    changed = {}
    for key in axes:
        value = int(base[key])
        for more in (value, 1, 2, 6):  # some numbers must stay even, or divide others
            other = copy.deepcopy(base)
            other[key] = value + more
            try:
                changed_model = meta_model(other)
            except FamilyError:
                continue
            if changed_model.shapes != model.shapes:
                changed[key] = (value + more, changed_model.shapes)
                break
    return _write(config, base, axes, model, changed)


def _axes(config: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Config key → (axis, kind) for the keys that this field has names for."""
    axes: dict[str, tuple[str, str]] = {}
    for key, value in config.items():
        if isinstance(value, int) and not isinstance(value, bool):
            for pattern, axis, kind in KEYS:
                if re.fullmatch(pattern, key):
                    axes[key] = (axis or key, kind)
                    break
    return axes


def _with_sizes(config: Mapping[str, Any], axes: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """The config with small sizes that all differ."""
    sized = copy.deepcopy(dict(config))
    neurons = iter(NEURONS * 4)
    counts = {config[k] for k, (_, kind) in axes.items() if kind == "layers"}
    for key, (axis, kind) in axes.items():
        size = next(neurons) if kind == "neurons" else SIZES.get(axis, 0)
        if kind == "layers":
            size = 2
        elif kind in ("heads", "kv_heads"):
            grouped = kind == "kv_heads" and config[key] < max(
                config[k] for k, (_, other) in axes.items() if other in ("heads", "kv_heads")
            )
            size = SIZES["kv_heads"] if grouped else SIZES["heads"]
        elif kind == "latent":
            size = SIZES.get(axis) or next(neurons)
        sized[key] = size or config[key]
    for key, value in config.items():
        if key.endswith("_token_id") and isinstance(value, int | list):
            sized[key] = 1
        elif isinstance(value, list) and len(value) in counts:
            sized[key] = value[:2]
    return sized


# -- from shapes to dims ---------------------------------------------------------------------------


def _candidates(axes: Mapping[str, tuple[str, str]]) -> list[str]:
    """Expressions that a dim may be, the plainest first."""
    names = [axis for axis, kind in axes.values() if kind != "head_dim"]
    heads = [axis for axis, kind in axes.values() if kind == "heads"] or ["heads"]
    kv = next((axis for axis, kind in axes.values() if kind == "kv_heads"), "")
    expressions = [n for n in names if n not in ("layers",)] + ["q"]
    for axis in heads:
        expressions += [f"{axis}.q", f"{axis}.q|{kv or axis}.k|{kv or axis}.v"]
    expressions += [f"{kv}.k"] if kv else []
    streams = [a for a, kind in axes.values() if kind in ("stream", "neurons")]
    expressions += [f"{n}.{axis}" for axis in streams for n in (2, 3, 4)]
    expressions += [f"2|{a}" for a, kind in axes.values() if kind == "table"]
    return expressions


def _fits(text: str, observed: Sequence[tuple[Mapping[str, int], int]]) -> bool:
    expression = parse(text)
    return all(
        expression.axes <= sizes.keys() and expression.size(sizes) == value
        for sizes, value in observed
    )


def _head_sizes(config: Mapping[str, Any], axes: Mapping[str, tuple[str, str]]) -> dict[str, int]:
    """Axis sizes of a config; heads share the stream where no key says their size."""
    sizes = {axis: int(config[key]) for key, (axis, kind) in axes.items() if kind != "head_dim"}
    sizes_of_heads = [int(config[key]) for key, (_, kind) in axes.items() if kind == "head_dim"]
    heads = next((sizes[a] for a, kind in axes.values() if kind == "heads"), 0)
    inner = sizes_of_heads[0] if sizes_of_heads else sizes.get("hidden", 0) // heads if heads else 0
    return sizes | dict.fromkeys(("q", "k", "v"), inner)


def _describe(
    name: str,
    place: int,
    observed: Sequence[tuple[Mapping[str, int], int]],
    candidates: Sequence[str],
) -> tuple[str, bool]:
    """The expression of one dim, and whether that is sure."""
    if len({value for _, value in observed}) == 1 and observed[0][1] < 8:
        return str(observed[0][1]), True
    fitting = [c for c in candidates if _fits(c, observed)]
    if not fitting:
        return str(observed[0][1]), False
    module = name.rpartition(".")[0]
    hint = next((part for part, words in PART.items() if words.search(module)), "")
    inside = bool(ATTENTION.search(module))
    products = [c for c in fitting if "." in c and not c[0].isdigit()]
    projects = hint in ("q", "k", "v", "qkv")
    if products and inside and (place == 0 if projects else hint == "o" and place == 1):
        chosen = next((c for c in products if ("|" in c) is (hint == "qkv")), products[0])
        return _part(chosen, hint), hint != "qkv"  # shapes do not show how parts are interleaved
    sure = len(fitting) == 1 or not inside or bool(hint)  # only attention has inner products
    if KEY_NORM.search(module) and fitting[0].endswith("q"):
        return fitting[0][:-1] + "k", sure
    return _part(fitting[0], hint), sure and "|" not in fitting[0]


def _part(text: str, hint: str) -> str:
    """Heads times what the module makes: queries, keys or values."""
    if "|" in text or not text.endswith((".q", ".k")):
        return text
    return text[:-1] + {"q": "q", "k": "k", "v": "v", "o": "v"}.get(hint, text[-1])


# -- the file --------------------------------------------------------------------------------------


def _write(
    config: Mapping[str, Any],
    base: Mapping[str, Any],
    axes: Mapping[str, tuple[str, str]],
    model: MetaModel,
    changed: Mapping[str, tuple[int, Shapes]],
) -> Draft:
    lines = []
    candidates = _candidates(axes)
    for module, members in _modules(model.shapes, axes).items():
        kind, sure = _line(module, members, base, axes, model, changed, candidates)
        pattern = _numbered(module, axes)
        lines.append(f"  {pattern}: {kind}" + ("" if sure else "    # ?"))
    text = "\n".join(lines)
    multiple = re.search(r"\b(\d\.hidden)\b", text)  # units that no config key counts
    if multiple and "mlp" not in [axis for axis, _ in axes.values()]:
        lines = text.replace(multiple[1], "mlp").split("\n")
        axes = {**axes, "": ("mlp", "neurons")}
        lines.append(f"derived: {{mlp: {multiple[1]}}}")
    text = "\n".join([*_head(config, axes, model), "modules:", *dict.fromkeys(lines), ""])
    return Draft(text, text.count("# ?"))


def _numbered(module: str, axes: Mapping[str, tuple[str, str]]) -> str:
    """A module's name with the axes that its numbers count: a stack's layers, then experts."""
    stacks = [axis for axis, kind in axes.values() if kind == "layers"]
    named = [a for a in stacks if a.partition("_")[0] in module.split(".")]
    slots = [*(named or [a for a in stacks if "_" not in a] or stacks)[:1]]
    slots += ["experts"] if ("experts", "experts") in axes.values() else []
    for slot in slots:
        module = re.sub(r"(?<=\.)\d+(?=\.|$)", f"{{{slot}}}", module, count=1)
    return module


def _modules(shapes: Shapes, axes: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Module of layer 0 (and expert 0), and modules outside layers → {suffix: tensor}."""
    modules: dict[str, dict[str, str]] = {}
    counted = 1 + (("experts", "experts") in axes.values())
    for name in shapes:
        if all(n == "0" for n in re.findall(r"(?<=\.)\d+(?=\.|$)", name)[:counted]):
            module, dot, suffix = name.rpartition(".")
            if suffix not in ("weight", "bias"):
                module, dot, suffix = name, "", ""
            modules.setdefault(module, {})[dot + suffix] = name
    return modules


def _line(
    module: str,
    members: Mapping[str, str],
    base: Mapping[str, Any],
    axes: Mapping[str, tuple[str, str]],
    model: MetaModel,
    changed: Mapping[str, tuple[int, Shapes]],
    candidates: Sequence[str],
) -> tuple[str, bool]:
    """What a module is, as a family file says it."""
    name = members.get(".weight", next(iter(members.values())))
    shape, dims, sure = model.shapes[name], [], True
    for place in range(len(shape)):
        observed = [(_head_sizes(base, axes), shape[place])]
        for key, (value, shapes) in changed.items():
            if name in shapes:
                other = {**base, key: value}
                observed.append((_head_sizes(other, axes), shapes[name][place]))
        linear = len(shape) == 2
        transposed = model.classes.get(module) == "Conv1D"
        role = (1 - place if transposed else place) if linear else 0
        text, certain = _describe(name, role, observed, candidates)
        dims.append(text)
        sure &= certain
    class_name = model.classes.get(module, "").lower()
    if len(dims) == 2 and ".weight" in members:
        if "embedding" in class_name or module == model.embedding:
            return f"emb {dims[0]} {dims[1]}", sure
        return (f"lint {dims[1]} {dims[0]}" if transposed else f"lin {dims[0]} {dims[1]}"), sure
    if len(dims) == 1 and ".weight" in members:
        word = "ln" if ".bias" in members or "layernorm" in class_name else "rms"
        return f"{word} {dims[0]}", sure
    return "raw " + " ".join(f"{d}{'=' if d.isdigit() else '+'}" for d in dims), False


def _head(
    config: Mapping[str, Any], axes: Mapping[str, tuple[str, str]], model: MetaModel
) -> Iterator[str]:
    """Everything above the modules."""
    kind = config.get("model_type", "unknown")
    yield f"# A draft from the config of a {kind} model. Look at every line with a question mark,"
    yield "# then run `growkit families check FILE --config CONFIG.json`."
    yield f"family: {kind}"
    yield f"about: {kind}    # ? one line for people"
    yield f"model_type: [{kind}]"
    yield "axes:"
    free = any(k == "head_dim" for _, k in axes.values())
    for axis, role in dict.fromkeys(v for v in axes.values() if v[1] != "head_dim"):
        yield f"  {axis}: {role}"
    yield from ("  q: query", "  k: key", "  v: value", "  labels: table")
    yield "config:"
    heads = next((a for a, role in axes.values() if role == "heads"), "heads")
    for key, (axis, role) in axes.items():
        if not key:
            continue
        if role == "head_dim":
            yield f"  {key}: [q, k, v]"
        elif role == "stream" and not free:
            yield f"  {key}: [{axis}, {heads}.q, {heads}.k, {heads}.v]    # ? if heads share it"
        else:
            yield f"  {key}: {axis}"
    for key, (axis, role) in axes.items():
        count = config.get(key, 0)
        lists = [k for k, v in config.items() if isinstance(v, list) and len(v) == count > 1]
        if role == "layers" and lists:
            yield f"lists: {{{', '.join(f'{k}: {axis}' for k in lists)}}}"
    eps = next((k for k in config if "eps" in k and "norm" in k), "")
    yield f"eps: {eps}" if eps else "# eps: ? no config key of norms was found"
    yield "residual: pre    # ? post where norms write the stream; norms may need `> branch`"
    yield "scores: {power: -0.5}    # ? attention scores carry head_dim ** power"
    if any("rope" in k or "rotary" in k for k in config):
        theta = "[rope_parameters.rope_theta, rope_theta]"
        yield f"rope: {{pairs: halves, theta: {theta}}}    # ? or adjacent pairs"
    if model.head:
        yield "head:    # ? scale_at: the norm that feeds the head"
        yield f"  weight: {model.head}.weight"
        yield f"  tied: {model.embedding}.weight"
        yield f"  scale_at: {_last_norm(model)}"
        yield f"  classes: [{(config.get('architectures') or ['CausalLM'])[0]}]"
        yield f"  default: {str(bool(config.get('tie_word_embeddings'))).lower()}"


def _last_norm(model: MetaModel) -> str:
    """The last norm outside the layers."""
    norms = [n for n in _modules(model.shapes, {}) if "norm" in model.classes.get(n, "").lower()]
    return next((n for n in reversed(norms) if not re.search(r"\.\d+\.", n)), "null")
