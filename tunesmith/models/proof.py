"""Before a run, an evaluation or a chat: is leaving the class's own attention and head allowed for this architecture?

Proved on a miniature of the class: the same config with as few layers as show every kind of layer, narrow MLPs, a small
vocabulary, a short sliding window and fewer heads, filled with fixed random weights in fp32, on 128 tokens. What is proved is the
class's code under our attention and our head, which is where surprises live (a mask lost under a registered name, state that
leaks between documents, logits that are scaled): the weights themselves play no part in it, and a model of any size is
proved in a second or two.

Four statements, a fifth where something stands in front of every layer's documents, and a sixth where documents may share rows'
beginnings:
  head       our head on the last hidden states gives the class's logits
  attention  our attention gives what the class's own attention gives
  packed     a packed row gives what its documents give alone
  causal     changing one token moves nothing before it and nothing in other documents
  prefix     a packed row behind a prefix gives what the class gives, document by document, from a cache that holds it
  shared     a row in which documents share what they begin with gives what they give alone, what another row has computed too
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunesmith.models import attention, front, slots
from tunesmith.models.attention_layers import attention_layers
from tunesmith.models.forest import Front, row_arguments
from tunesmith.models.head import decoder_of, head_of
from tunesmith.models.load import quiet
from tunesmith.models.prefix_attention import Prefix

TOLERANCE = 1e-4  # largest difference over the largest magnitude, fp32; true differences are of order 0.01 and more
LENGTHS = (37, 5, 64, 22)  # tokens of the documents of the proof's row: 128 in all, some longer than the window
WINDOW = 16  # sliding windows and attention chunks of the miniature
VOCABULARY = 256
FOREST = ((20, 9, 30, 1, 24, 6), (-1, 0, 1, 0, -1, 4))  # a row in which documents share: lengths of its segments, whom each continues
HEAD = 13  # tokens of a beginning that a row of its own computes for that one
PREFIX = 11  # positions of the miniature's prefix: fewer than the window, so that some tokens see all, some a part, some nothing of it
WIDTH = 64  # of the miniature's MLPs
NARROWEST = 256  # channels that stay where heads are taken away
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")  # what families call the number of blocks


@dataclass(frozen=True)
class Proof:
    """What may be left to us. `failures` are sentences for the user, one for each statement that did not hold."""

    own_head: bool  # hidden states and our head may replace the class's forward
    packed: bool  # several documents may share a row under our attention
    failures: tuple[str, ...]
    behind_prefix: bool = True  # and may all stand behind one prefix; as good as `packed` where that was not asked for
    shared: bool = False  # what documents begin with may stand once in a row, or in a row before it


def prove(config: Any, model_class: type, own_attention: str, prefix: bool = False, share: bool = True) -> Proof:
    """The proof for an architecture, of a prefix and of shared beginnings too where they are to be used. Nothing is raised: what
    fails is not used, and said."""
    failures: list[str] = []
    ids_T = torch.arange(sum(LENGTHS)).mul(7919).remainder(VOCABULARY)
    documents = ids_T.split(LENGTHS)
    with torch.no_grad(), quiet():
        try:
            model, reference = _reference(config, model_class, own_attention, documents)
        except Exception as error:  # any architecture of the library may refuse to be small, for reasons of its own
            failure = f"no miniature of {model_class.__name__} runs ({_line(error)}); its own head and attention are used"
            return Proof(False, False, (failure,), False)

        def own() -> list[tuple[Tensor, Tensor]]:
            return [(_our_logits(model, d, None), r) for d, r in zip(documents, reference, strict=True)]

        def ours() -> list[tuple[Tensor, Tensor]]:
            _attend(model, attention.NAME)
            return [(_logits(model, d, (len(d),), head), r) for d, r in zip(documents, reference, strict=True)]

        def packed() -> list[tuple[Tensor, Tensor]]:
            return [(_logits(model, ids_T, LENGTHS, head), torch.cat(reference))]

        def causal() -> list[tuple[Tensor, Tensor]]:
            at = LENGTHS[0] + LENGTHS[1] + LENGTHS[2] // 2
            changed_T = ids_T.clone()
            changed_T[at] = (changed_T[at] + 1) % VOCABULARY
            before, after = _logits(model, ids_T, LENGTHS, head), _logits(model, changed_T, LENGTHS, head)
            still = torch.ones(len(ids_T), dtype=torch.bool)
            still[at : sum(LENGTHS[:3])] = False
            assert not torch.equal(before[~still], after[~still]), "a changed token changes nothing at all"
            return [(after[still], before[still])]

        def behind() -> list[tuple[Tensor, Tensor]]:
            return [_behind_prefix(model, ids_T, own_attention, head)]

        def shared() -> list[tuple[Tensor, Tensor]]:
            _attend(model, attention.NAME)
            return _shared(model, ids_T, head)

        head = _holds("our head gives the class's logits", "its own head is used", failures, own)
        alone = "each document has a row of its own, under the class's own attention"
        free = (
            _holds("our attention gives what the class's own attention gives", alone, failures, ours)
            and _holds("a packed row gives what its documents give alone", alone, failures, packed)
            and _holds("a changed token moves nothing before it and nothing in other documents", alone, failures, causal)
        )
        without = "a prefix cannot be trained or used here"
        after = free and (not prefix or _holds("our attention behind a prefix gives what the class gives", without, failures, behind))
        computed = "each document is computed from its first token on"
        once = "what documents share, computed once, gives what they give alone"
        sharing = share and free and _holds(once, computed, failures, shared)
    return Proof(head, free, tuple(failures), after, sharing)


def _shared(model: Any, ids_T: Tensor, our_head: bool) -> list[tuple[Tensor, Tensor]]:
    """The logits of a row that is a forest, behind what a row before it has kept, and those of each path alone."""
    head_T, ids_T = ids_T[:HEAD], ids_T[HEAD : HEAD + sum(FOREST[0])]
    kept: dict[Any, Front] = {}
    found = [_logits(model, head_T, (HEAD,), our_head, kept=kept)]
    found.append(_logits(model, ids_T, FOREST[0], our_head, HEAD, FOREST[1], (kept,)))
    own, alone = ids_T.split(FOREST[0]), [_logits(model, head_T, (HEAD,), our_head)]
    for segment, ids in enumerate(own):
        before, at = [], segment
        while (at := FOREST[1][at]) >= 0:
            before.append(own[at])
        path_T = torch.cat([head_T, *before[::-1], ids])
        alone.append(_logits(model, path_T, (len(path_T),), our_head)[-len(ids) :])
    return [(torch.cat(found), torch.cat(alone))]


def _behind_prefix(model: Any, ids_T: Tensor, own_attention: str, our_head: bool) -> tuple[Tensor, Tensor]:
    """The packed row's logits behind a drawn prefix, and the class's own of each document after a cache with the same."""
    generator = torch.Generator().manual_seed(2)
    given: dict[str, Any] = {
        layer.path: Prefix(layer.index, *(torch.randn(layer.heads, PREFIX, layer.size, generator=generator) for _ in range(2)))
        for layer in attention_layers(model)
    }
    slots.place(model, given)
    try:
        _attend(model, own_attention)
        theirs = torch.cat([front.logits(model, document[None])[0] for document in ids_T.split(LENGTHS)])
        _attend(model, attention.NAME)
        return _logits(model, ids_T, LENGTHS, our_head, PREFIX), theirs
    finally:
        slots.lift(model, given)


def _reference(config: Any, model_class: type, own_attention: str, documents: Sequence[Tensor]) -> tuple[Any, list[Tensor]]:
    """The miniature and the class's own logits of each document: with fewer heads where the class takes that, else with all."""
    try:
        model = miniature(config, model_class, narrow=True)
        _attend(model, own_attention)
        return model, [_own_logits(model, ids) for ids in documents]
    except Exception:
        model = miniature(config, model_class, narrow=False)
        _attend(model, own_attention)
        return model, [_own_logits(model, ids) for ids in documents]


def miniature(config: Any, model_class: type, narrow: bool = True) -> Any:
    """The class with few layers, narrow MLPs, a small vocabulary and short windows, in fp32, with fixed random weights.

    `narrow` takes heads and channels down in proportion, so that a head is as wide as it was.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for each in {id(config): config, id(text): text}.values():
        for name in ("quantization_config", "_pre_quantization_dtype"):
            if hasattr(each, name):
                delattr(each, name)
        each.dtype = torch.float32
    layers = _layers_to_keep(text)
    for name in _LAYER_COUNTS:
        if getattr(text, name, None) is not None:
            setattr(text, name, layers)
    for name in ("layer_types", "mlp_layer_types", "no_rope_layers"):
        if isinstance(vars(text).get(name), list):  # a property follows the number of layers by itself
            setattr(text, name, vars(text)[name][:layers])
    for name in ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "n_inner", "ffn_dim"):
        if getattr(text, name, None):
            setattr(text, name, WIDTH)
    for name in ("sliding_window", "attention_chunk_size"):
        if getattr(text, name, None):
            setattr(text, name, WINDOW)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(text, name, None) is not None:
            setattr(text, name, 0)
    text.vocab_size = VOCABULARY
    if narrow:
        _narrow(text)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        model = model_class(config)
    model.float().eval().requires_grad_(False)
    _fill(model)
    model.tie_weights()
    return model


def _narrow(text: Any) -> None:
    """Divide heads, key-value heads (two stay, so that their pairing shows) and channels by one number."""
    heads_name = next((name for name in ("num_attention_heads", "n_head", "n_heads") if hasattr(text, name)), "")
    width_name = next((name for name in ("hidden_size", "n_embd", "d_model") if hasattr(text, name)), "")
    heads, width = getattr(text, heads_name, None), getattr(text, width_name, None)
    if not isinstance(heads, int) or not isinstance(width, int):
        return
    kept = getattr(text, "num_key_value_heads", None) or heads
    common = math.gcd(heads, kept, width)
    factor = max(f for f in range(1, common + 1) if common % f == 0 and (f == 1 or (width // f >= NARROWEST and kept // f >= 2)))
    for name, value in ((heads_name, heads), ("num_key_value_heads", kept), (width_name, width), ("word_embed_proj_dim", width)):
        if getattr(text, name, None) == value:
            setattr(text, name, value // factor)


def _layers_to_keep(text: Any) -> int:
    """Enough layers to see every kind of them, at least two."""
    last_new = [2, (getattr(text, "first_k_dense_replace", None) or 0) + 1]
    for name in ("layer_types", "mlp_layer_types"):
        kinds = getattr(text, name, None) or []
        last_new += [kinds.index(kind) + 1 for kind in set(kinds)]
    count = next((getattr(text, n) for n in _LAYER_COUNTS if getattr(text, n, None)), 2)
    return min(max(last_new), count)


def _fill(model: Any) -> None:
    """Weights that show every path: nothing zero, norms near one, biases and sinks not forgotten."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = noise * (1.5 / parameter.shape[-1] ** 0.5)
        else:
            parameter.data = parameter.data + noise * 0.1


def _attend(model: Any, name: str) -> None:
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise attention.UnknownArgument(f"{type(model).__name__} cannot change its attention")


def _own_logits(model: Any, ids_T: Tensor) -> Tensor:
    return model(input_ids=ids_T[None], use_cache=False).logits[0]


def _our_logits(model: Any, ids_T: Tensor, lengths: tuple[int, ...] | None, *row: Any, **kept: Any) -> Tensor:
    return head_of(model).logits(_hidden(decoder_of(model), ids_T, lengths, *row, **kept))


def _logits(model: Any, ids_T: Tensor, lengths: tuple[int, ...], our_head: bool, *row: Any, **kept: Any) -> Tensor:
    """`row`, `kept`: the further arguments of `row_arguments`."""
    if our_head:
        return _our_logits(model, ids_T, lengths, *row, **kept)
    return model(input_ids=ids_T[None], use_cache=False, **row_arguments(lengths, ids_T.device, *row, **kept)).logits[0]


def _hidden(decoder: Any, ids_T: Tensor, lengths: tuple[int, ...] | None, *row: Any, **kept: Any) -> Tensor:
    arguments = row_arguments(lengths, ids_T.device, *row, **kept) if lengths else {}
    return decoder(input_ids=ids_T[None], use_cache=False, **arguments).last_hidden_state[0]


def _holds(statement: str, otherwise: str, failures: list[str], pairs: Any) -> bool:
    try:
        worst = max(((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in pairs())
    except Exception as error:  # whatever a class raises here means that it does not work this way
        failures.append(f"not so for this architecture: {statement} ({_line(error)}); {otherwise}")
        return False
    if not worst <= TOLERANCE:
        failures.append(f"not so for this architecture: {statement} (relative difference {worst:.1e}); {otherwise}")
        return False
    return True


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
