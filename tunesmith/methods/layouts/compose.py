"""Several LoRAs of one base made into one LoRA.

    concat    ΔW = Σ wᵢ·sᵢ·Bᵢ·Aᵢ, exactly: the factors stand side by side, the rank is the sum of the ranks

                  [w₁s₁B₁ | w₂s₂B₂] [out, r₁+r₂]  ·  [A₁]
                                                     [A₂] [r₁+r₂, in]

    linear    A = Σ ±√|wᵢsᵢ|·Aᵢ, B = Σ √|wᵢsᵢ|·Bᵢ, the sign of wᵢ on A alone: the rank stays, but B·A also holds the products
              Bᵢ·Aⱼ of different adapters, which nobody trained; `deviation` says how far that is from the weighted sum

Both are what `peft`'s add_weighted_adapter does as "cat" and "linear". A layer that only some adapters reach takes part with those.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from tunesmith.errors import UserError
from tunesmith.methods.layouts.adapter_file import AdapterFile, some
from tunesmith.models.fingerprint import difference

Weighted = Sequence[tuple[AdapterFile, float]]

_WHY_NOT = {
    "prompt": "virtual tokens are inputs, not an update of weights; their sum means nothing",
    "prefix": "keys and values of a prefix are no update of weights; their sum means nothing",
    "adapterhub": "a bottleneck has an activation inside, so two of them are not one",
}


def concat(files: Weighted) -> AdapterFile:
    """The weighted sum of the updates, exactly. Raises UserError with all that cannot be combined."""
    _check(files)

    def joined(parts: list[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor]:
        return torch.cat([a for a, _, _ in parts]), torch.cat([factor * b for _, b, factor in parts], dim=1)

    return _combined(files, joined, "concat")


def linear(files: Weighted) -> AdapterFile:
    """The weighted sums of the factors, of the rank that all share. Raises UserError with all that cannot be combined."""
    _check(files)
    problems = []
    for path in _paths(files):
        ranks = [(file.tensors[f"{path}.A"].shape[0], called(file)) for file, _ in files if path in file.facts["scales"]]
        if len({rank for rank, _ in ranks}) > 1:
            problems.append(f"{path}: ranks {', '.join(f'{rank} ({name})' for rank, name in ranks)}")
    if problems:
        raise UserError("linear needs the same rank everywhere; concat takes any", *[f"  {each}" for each in some(problems)])

    def summed(parts: list[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor]:
        roots = [math.sqrt(abs(factor)) for _, _, factor in parts]
        a = sum(math.copysign(root, factor) * a for root, (a, _, factor) in zip(roots, parts, strict=True))
        b = sum(root * b for root, (_, b, _) in zip(roots, parts, strict=True))
        return a, b  # type: ignore[return-value]

    return _combined(files, summed, "linear")


HOW: dict[str, Callable[[Weighted], AdapterFile]] = {"concat": concat, "linear": linear}


def deviation(combined: AdapterFile, files: Weighted) -> float:
    """‖combined − Σ wᵢ·ΔWᵢ‖ / ‖Σ wᵢ·ΔWᵢ‖ over all layers together; no [out, in] matrix is made."""
    apart = concat([(combined, 1.0), *[(file, -weight) for file, weight in files]])
    size = _norm(concat(files))
    return _norm(apart) / size if size else 0.0


def other_bases(files: Weighted) -> list[str]:
    """A sentence for each adapter whose base is not that of the first: by their fingerprints, or by name where one has none."""
    first = files[0][0]
    found = []
    for file, _ in files[1:]:
        prints = [each.about.get("base") for each in (first, file)]
        if all(prints):
            why = difference(prints[0], prints[1])  # type: ignore[arg-type]
        else:
            why = "" if _name(first) == _name(file) else "another name, and nothing in the folders that tells whether it is the same"
        if why:
            found.append(f"{file.folder} was made for {file.base or 'an unnamed base'}, {first.folder} for {first.base or 'one'}: {why}")
    return found


def called(file: AdapterFile) -> str:
    """An adapter's name: its folder's, or its run's."""
    return file.folder.parent.name if file.folder.name == "adapter" and file.folder.parent.name else file.folder.name


def _name(file: AdapterFile) -> str:
    path = Path(file.base).expanduser()
    return str(path.resolve()) if path.is_dir() else file.base.partition("@")[0]


def _check(files: Weighted) -> None:
    problems = [f"{file.folder}: {why}" for file, _ in files if (why := _why_not(file))]
    problems += [f"{file.folder}: the weight {weight} is not a finite number" for file, weight in files if not math.isfinite(weight)]
    if files and not any(weight for _, weight in files):
        problems.append("every weight is 0: that is the base itself")
    if problems:
        raise UserError(*problems)


def _why_not(file: AdapterFile) -> str:
    if file.layout not in ("lora", "pissa"):  # the latter is a LoRA of rank 2r in its folder
        why = _WHY_NOT.get(file.layout, f"{file.layout} is no low-rank update")
        return f"{why}; serve it by itself, or train one adapter on both data sets"
    if file.facts.get("dora"):
        return "a DoRA scales each row to a trained length, so the sum of two is none; merge one into the base and train over that"
    if "head" in file.facts:
        return "has a task's head, and two heads are not one; train one adapter for both tasks"
    paths = {f"{path}.{name}" for path in file.facts["scales"] for name in "AB"}
    if rest := sorted(file.tensors.keys() - paths):
        return f"also trains {', '.join(some(rest, 3))}, and two trained copies of one tensor are not one; merge it into the base"
    return ""


def _combined(files: Weighted, make: Callable[[list[tuple[Tensor, Tensor, float]]], tuple[Tensor, Tensor]], how: str) -> AdapterFile:
    """Scales go into the factors: every layer of the result has scale 1."""
    tensors: dict[str, Tensor] = {}
    for path in _paths(files):
        parts = [
            (file.tensors[f"{path}.A"].float(), file.tensors[f"{path}.B"].float(), weight * file.facts["scales"][path])
            for file, weight in files
            if path in file.facts["scales"]
        ]
        tensors[f"{path}.A"], tensors[f"{path}.B"] = make(parts)
    made_of = [{"adapter": called(file), "weight": weight} for file, weight in files]
    about = {"composed": {"how": how, "of": made_of}} | ({"base": base} if (base := files[0][0].about.get("base")) else {})
    scales = dict.fromkeys(_paths(files), 1.0)
    name = Path("+".join(called(file) for file, _ in files))
    return AdapterFile(name, files[0][0].base, "lora", tensors, {"scales": scales, "dropout": 0.0, "dora": False}, about)


def _paths(files: Weighted) -> list[str]:
    return list(dict.fromkeys(path for file, _ in files for path in file.facts["scales"]))


def _norm(file: AdapterFile) -> float:
    """‖B·A‖ over all layers, by ‖BA‖² = tr(BᵀB·AAᵀ); in fp64, since what is left of a difference is small."""
    total = 0.0
    for path in file.facts["scales"]:
        a, b = file.tensors[f"{path}.A"].double(), file.tensors[f"{path}.B"].double() * file.facts["scales"][path]
        total += float(((b.T @ b) * (a @ a.T)).sum())
    return math.sqrt(max(0.0, total))
