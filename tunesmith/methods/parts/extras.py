"""What is trained beside low-rank updates, and saved with them: rows of the embedding (`trainable_tokens`), whole modules
(`modules_to_save`). The same modules serve every method whose folder is laid out as LoRA's.

Where embedding and head are one matrix they stay one: a trained row is also the row that the head scores with, a trained copy
also the head's. A module of the head then owns nothing and names in `follows` the path whose tensors it uses.

Shapes: T tokens, C channels, V vocabulary, n trained rows.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.errors import UserError
from tunesmith.models import slots


class TrainedRows(nn.Module):
    """Some rows of an embedding, in fp32, in place of the frozen ones: `values` [n, C] for the ids `ids_n`, before any scaling
    that the embedding's class does."""

    def __init__(self, ids: Sequence[int], channels: int, device: Any = None):
        super().__init__()
        self.ids = list(ids)
        self.values = nn.Parameter(torch.zeros(len(self.ids), channels, dtype=torch.float32, device=device))
        self._sorted: tuple[Tensor, Tensor] | None = None  # ids that rise, and where each one's row stands

    def begin(self, layer: nn.Module) -> None:
        """The layer's own rows."""
        self.values.copy_(layer.weight[self.ids])  # type: ignore[index]

    def forward(self, layer: nn.Module, ids_T: Tensor) -> Tensor:
        """[..., T] ids to [..., T, C] in the embedding's dtype."""
        return self.changed(layer, ids_T, slots.own_forward(layer, ids_T))

    def changed(self, layer: nn.Module, ids_T: Tensor, x_TC: Tensor) -> Tensor:
        """The embedding's own output [..., T, C] with these rows in it."""
        if self._sorted is None or self._sorted[0].device != ids_T.device:
            self._sorted = torch.tensor(self.ids, device=ids_T.device).sort()
        sorted_n, order_n = self._sorted
        at_T = torch.searchsorted(sorted_n, ids_T).clamp_(max=len(self.ids) - 1)
        rows_TC = nn.functional.embedding(order_n[at_T], self.values.to(x_TC.dtype))
        if (scale := getattr(layer, "embed_scale", None)) is not None:  # Gemma 3 scales inside its embedding's class
            rows_TC = rows_TC * torch.as_tensor(scale, dtype=rows_TC.dtype)
        return torch.where((sorted_n[at_T] == ids_T)[..., None], rows_TC.to(x_TC.dtype), x_TC)

    def folded(self, weight_VC: Tensor) -> Tensor:
        """The embedding with these rows in it, fp32 [V, C]."""
        return weight_VC.float().index_copy(0, torch.tensor(self.ids, device=weight_VC.device), self.values.detach())


class ScoredRows(nn.Module):
    """Some rows of a head: the logits of these ids are made with them. `values` are its own, or those of a tied embedding."""

    def __init__(self, ids: Sequence[int], channels: int, source: TrainedRows | None = None, follows: str = "", device: Any = None):
        super().__init__()
        self.ids = list(ids)
        self._source = (source,)  # in a tuple, so that its tensors are not this module's too
        if source is None:
            self.values = nn.Parameter(torch.zeros(len(self.ids), channels, dtype=torch.float32, device=device))
        else:
            self.follows = follows
        self._ids_n: Tensor | None = None

    def trained(self) -> list[nn.Parameter]:
        """What its logits depend on."""
        return [self._source[0].values if self._source[0] is not None else self.values]

    def begin(self, layer: nn.Module) -> None:
        """The layer's own rows, where they are not a tied embedding's."""
        if self._source[0] is None:
            self.values.copy_(layer.weight[self.ids])  # type: ignore[index]

    def forward(self, layer: nn.Module, h_TC: Tensor) -> Tensor:
        """[..., C] hidden states to [..., V] logits, in the hidden states' dtype."""
        return self.changed(layer, h_TC, slots.own_forward(layer, h_TC))

    def changed(self, layer: nn.Module, h_TC: Tensor, logits_TV: Tensor) -> Tensor:
        """The head's own logits [..., V] with those of these rows written into them."""
        if self._ids_n is None or self._ids_n.device != h_TC.device:
            self._ids_n = torch.tensor(self.ids, device=h_TC.device)
        bias: Any = getattr(layer, "bias", None)
        bias_n = None if bias is None else bias[self._ids_n]
        scores_Tn = nn.functional.linear(h_TC, self.trained()[0].to(h_TC.dtype), bias_n)
        return logits_TV.index_copy_(-1, self._ids_n, scores_Tn)

    def folded(self, weight_VC: Tensor) -> Tensor:
        """The head with these rows in it, fp32 [V, C]."""
        return weight_VC.float().index_copy(0, torch.tensor(self.ids, device=weight_VC.device), self.trained()[0].detach())


class TrainedCopy(nn.Module):
    """A layer's own tensors, trained: copies, in its dtype, take their places while it is attached. The class, our head and our
    loss read them there; the optimizer keeps fp32 masters as it does for full tuning."""

    weight: nn.Parameter

    def __init__(self, layer: nn.Module, device: Any = None, split_from: str = ""):
        super().__init__()
        self.split_from = split_from  # the layer whose matrix this one's was, where the file has a copy of one of them alone
        for name, tensor in layer._parameters.items():
            if tensor is not None:
                self.register_parameter(name, nn.Parameter(torch.empty_like(tensor, device=device, requires_grad=False)))
        self._own: dict[str, Any] = {}
        self._other: tuple[nn.Module, nn.Module] | None = None  # the layer, and what computes as it does with these tensors

    def begin(self, layer: nn.Module) -> None:
        """The layer's own tensors."""
        for name, tensor in self.named_parameters():
            tensor.copy_(layer._parameters[name])  # type: ignore[arg-type]

    def attach(self, layer: nn.Module) -> None:
        """Take the places of the layer's tensors, which are kept."""
        self._own = dict(layer._parameters)
        for name, tensor in self.named_parameters():
            layer._parameters[name] = tensor

    def detach(self, layer: nn.Module) -> None:
        """The layer as it was, to the bit."""
        layer._parameters.update(self._own)
        self._own = {}

    def instead(self, layer: nn.Module, *inputs: Any, **named: Any) -> Any:
        """What the layer computes with these tensors, which it does not get: it may be computing with its own meanwhile."""
        if self._other is None or self._other[0] is not layer:
            self._other = layer, with_tensors(layer, dict(self.named_parameters()))
        return slots.own_forward(self._other[1], *inputs, **named)

    def folded(self, weight: Tensor) -> Tensor:
        """The trained matrix, or a norm's vector. Raises UserError where it cannot stand in the base's checkpoint."""
        if self.split_from:
            raise UserError(
                f"modules_to_save: embedding and head are one matrix in the base, and this adapter has a copy beside {self.split_from} "
                "alone, which one matrix cannot hold; serve the adapter as it is"
            )
        return self.weight.detach().float()

    def vectors(self) -> dict[str, Tensor]:
        """What goes into the checkpoint beside `weight`."""
        return {name: tensor.detach() for name, tensor in self.named_parameters() if name != "weight"}


class TiedCopy(nn.Module):
    """A trained copy at the other end of a tied model: the same tensor in the head's place."""

    def __init__(self, source: TrainedCopy, follows: str):
        super().__init__()
        self._source, self.follows = (source,), follows
        self._own: dict[str, Any] = {}
        self._other: tuple[Any, ...] = ()  # the layer, and what computes as it does with the other end's matrix

    def attach(self, layer: nn.Module) -> None:
        """Put the other end's matrix here too."""
        self._own = {"weight": layer._parameters["weight"]}
        layer._parameters["weight"] = self._source[0].weight

    def detach(self, layer: nn.Module) -> None:
        """The layer as it was, to the bit."""
        layer._parameters.update(self._own)
        self._own = {}

    def instead(self, layer: nn.Module, *inputs: Any, **named: Any) -> Any:
        """What the layer computes with the other end's matrix; it keeps its own."""
        if not self._other or self._other[0] is not layer:
            self._other = layer, with_tensors(layer, {"weight": self._source[0].weight})
        return slots.own_forward(self._other[1], *inputs, **named)


def with_tensors(layer: nn.Module, tensors: dict[str, Any]) -> nn.Module:
    """Another layer of the same class that shares everything with this one but these tensors, and beside which nothing stands."""
    other = copy.copy(layer)
    vars(other)["_parameters"] = layer._parameters | tensors
    vars(other).pop("forward", None)
    vars(other).pop(slots.PART, None)
    return other


def build(model: Any, tokens: Sequence[int | str], modules: Sequence[str], device: Any = None) -> dict[str, nn.Module]:
    """The modules, by path, for the ids and names that a method's settings give. Raises LookupError for what the model lacks."""
    embedding, head = ends(model)
    adapter: dict[str, nn.Module] = {}
    if tokens:
        rows = model.get_submodule(embedding).weight.shape[0]
        if wrong := [token for token in tokens if not isinstance(token, int) or not 0 <= token < rows]:
            raise LookupError(f"trainable_tokens: {', '.join(map(str, wrong))}: not among the {rows} ids of this model's embedding")
        adapter |= rows_at(model, embedding, list(dict.fromkeys(int(token) for token in tokens)), device)
    copied = [path for name in modules for path in _leaves(model, name)]
    if tied(model) and head in copied:  # one matrix: whichever end is named
        copied = [embedding, *copied]
    copied = [path for path in dict.fromkeys(copied) if not (tied(model) and path == head)]
    if both := [path for path in copied if path in adapter]:
        raise LookupError(f"modules_to_save holds {both[0]}, and trainable_tokens rows of it: name it in one of them")
    for path in copied:
        adapter |= copy_at(model, path, device)
    return {path: adapter[path] for path, _ in model.named_modules(remove_duplicate=False) if path in adapter}


def rows_at(model: Any, embedding: str, ids: list[int], device: Any) -> dict[str, nn.Module]:
    """Trained rows at the embedding, and at a head that is tied to it."""
    channels = model.get_submodule(embedding).weight.shape[1]
    rows = TrainedRows(ids, channels, device)
    return {embedding: rows, **({ends(model)[1]: ScoredRows(ids, channels, rows, embedding)} if tied(model) else {})}


def copy_at(model: Any, path: str, device: Any) -> dict[str, nn.Module]:
    """A trained copy of one layer, and the same tensor at the head where that is tied to it."""
    embedding, head = ends(model)
    copy = TrainedCopy(model.get_submodule(path), device)
    return {path: copy, **({head: TiedCopy(copy, embedding)} if tied(model) and path == embedding else {})}


@torch.no_grad()
def begin(tuning: Any, model: Any) -> None:
    """First values: those of the model."""
    for path, module in tuning.adapter.items():
        if (first := getattr(module, "begin", None)) is not None:
            first(model.get_submodule(path))


def without_head(adapter: dict[str, nn.Module], model: Any) -> dict[str, nn.Module]:
    """The same where a task's head has taken the place of the language model's own: nothing follows the embedding there any more,
    and a copy of the embedding alone is all that there is of the matrix."""
    head = ends(model)[1]
    for module in adapter.values():
        if isinstance(module, TrainedCopy) and module.split_from == head:
            module.split_from = ""
    return {path: module for path, module in adapter.items() if path != head or not hasattr(module, "follows")}


def ends(model: Any) -> tuple[str, str]:
    """Paths of embedding and head."""
    paths = {id(module): path for path, module in model.named_modules()}
    return paths[id(model.get_input_embeddings())], paths.get(id(model.get_output_embeddings()), "")


def tied(model: Any) -> bool:
    """Whether embedding and head are one tensor."""
    head = model.get_output_embeddings()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        return True
    # a copy that is attached to one of the two hides that they are
    return bool(slots.placed(model)) and bool(model.config.get_text_config(decoder=True).tie_word_embeddings)


def token_ids(tokens: Sequence[int | str], tokenizer: Any) -> list[int]:
    """Ids for tokens that a user names: an id, a token of the vocabulary, or a text that is one token. Raises UserError with all
    that are none."""
    vocabulary, ids, problems = tokenizer.get_vocab(), [], []
    for token in tokens:
        if isinstance(token, int):
            ids.append(token)
        elif token in vocabulary:
            ids.append(vocabulary[token])
        elif len(found := tokenizer.encode(token, add_special_tokens=False)) == 1:
            ids.append(found[0])
        else:
            parts = " ".join(map(repr, tokenizer.convert_ids_to_tokens(found)))
            problems.append(f"method.trainable_tokens: {token!r} is no token of this model, it is made of {len(found)}: {parts}")
    if problems:
        raise UserError(*problems)
    return ids


def _leaves(model: Any, name: str) -> list[str]:
    """Paths of the layers with tensors of their own at or below the modules that a name ends at."""
    found = [path for path, _ in model.named_modules() if path == name or path.endswith("." + name)]
    if not found:
        raise LookupError(f"modules_to_save: no module {name} in this model; lm_head, embed_tokens and endings of paths are names")
    leaves = []
    for path in found:
        for inner, module in model.get_submodule(path).named_modules():
            own = [tensor for tensor in module._parameters.values() if tensor is not None]
            if any(not tensor.is_floating_point() for tensor in own):
                raise LookupError(f"modules_to_save: {name} is kept in NF4, and NF4 codes have no gradient; take model.quantize=null")
            if own:
                leaves.append(f"{path}.{inner}" if inner else path)
    return leaves
