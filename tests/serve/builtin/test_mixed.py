import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import some_ids, tiny
from tunesmith.errors import UserError
from tunesmith.methods import method
from tunesmith.methods.settings import SETTINGS, Freeze
from tunesmith.methods.tuning import Start, Tuning
from tunesmith.models import front, slots
from tunesmith.models.score import Score
from tunesmith.serve.builtin.mixed import Mixed

IDS = some_ids(6)[None]


def made(model: Any, name: str, seed: int = 1, **settings: Any) -> Tuning:
    """An adapter that does something."""
    chosen = SETTINGS[name](**settings)
    tuning = method.build(model, chosen, quantized=False)
    method.begin(tuning, Start(model, None, 0, lambda path: model.get_submodule(path).weight.detach().float()), chosen)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuning.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return tuning


@pytest.fixture
def mixed() -> Iterator[Mixed]:
    found = Mixed(tiny("llama"))
    yield found
    found.close()


def logits(mixed: Mixed, *spans: tuple[int, int, str]) -> Tensor:
    """Of one document whose tokens go by several adapters, by the class's own attention."""
    with mixed.rows(list(spans)):
        found: Tensor = mixed.model(input_ids=IDS, use_cache=False).logits[0]
    return found


def test_without_adapters_the_model_is_the_base_to_the_bit(mixed: Mixed) -> None:
    wanted = tiny("llama")(input_ids=IDS, use_cache=False).logits[0]
    assert torch.equal(logits(mixed, (0, 6, "")), wanted)
    kinds: dict[str, dict[str, Any]] = {
        "lora": {"rank": 2, "modules_to_save": ["norm"]},
        "adapter": {"reduction": 4.0},
        "prompt": {"tokens": 2, "init": "random"},
    }
    for name, settings in kinds.items():
        mixed.add(name, made(mixed.model, name, **settings))
    assert torch.equal(logits(mixed, (0, 6, "")), wanted), "the base beside adapters"
    assert torch.equal(mixed.model(input_ids=IDS, use_cache=False).logits[0], wanted), "outside of rows"
    assert not torch.allclose(logits(mixed, (0, 6, "lora")), wanted, atol=1e-2)
    for name in ("prompt", "lora", "adapter"):
        mixed.remove(name)
    assert torch.equal(logits(mixed, (0, 6, "")), wanted)
    mixed.close()
    assert not slots.placed(mixed.model) and not any("forward" in vars(module) for module in mixed.model.modules())


def test_each_token_goes_by_its_span(mixed: Mixed) -> None:
    """With attention between them: the last span sees what the first ones made."""
    mixed.add("a", made(mixed.model, "lora", 1, rank=2, targets=["down"]))
    mixed.add("b", made(mixed.model, "adapter", 2, reduction=4.0))
    base, a, b = (logits(mixed, (0, 6, name)) for name in ("", "a", "b"))
    both = logits(mixed, (0, 2, "a"), (2, 2, "b"), (2, 4, ""), (4, 6, "b"))
    assert torch.allclose(both[:2], a[:2], atol=1e-5), "an empty span changes nothing"
    assert not torch.allclose(both[2:4], base[2:4], atol=1e-3) and not torch.allclose(both[4:], b[4:], atol=1e-3)
    assert torch.allclose(logits(mixed, (0, 3, ""), (3, 6, "b"))[:3], base[:3], atol=1e-5)


def test_what_stands_in_front_of_documents(mixed: Mixed) -> None:
    mixed.add("prompt", made(mixed.model, "prompt", tokens=3, init="random"))
    prefix = made(mixed.model, "prefix", tokens=4, hidden=16, init="random")
    with torch.no_grad():
        modules: list[Any] = list(prefix.adapter.values())
        wanted = {module.layer: module.keys_values() for module in modules}
    mixed.add("prefix", prefix)
    assert [mixed.virtual_tokens(name) for name in ("", "prompt", "prefix")] == [0, 3, 0]
    assert [mixed.first_position(name) for name in ("", "prompt", "prefix")] == [0, 0, 4]
    assert list(mixed.virtual_ids("prompt")) == [96, 97, 98] and mixed.prefix("") == {} and mixed.prefix("prompt") == {}
    assert mixed.prefix("prefix").keys() == wanted.keys()
    for layer, pair in mixed.prefix("prefix").items():
        assert all(torch.equal(found, given) and found.is_contiguous() for found, given in zip(pair, wanted[layer], strict=True))
    with pytest.raises(LookupError, match="nobody"):
        mixed.prefix("nobody")


def test_a_name_that_is_not_there_is_never_the_base(mixed: Mixed) -> None:
    with pytest.raises(LookupError, match="nobody"):
        logits(mixed, (0, 3, ""), (3, 6, "nobody"))
    assert mixed.row is None
    mixed.add("a", made(mixed.model, "lora", rank=2))
    logits(mixed, (0, 6, "a"))
    mixed.remove("a")
    with pytest.raises(LookupError, match="a"):
        logits(mixed, (0, 6, "a"))
    with pytest.raises(LookupError):
        mixed.remove("a")


def test_what_cannot_share_a_base_is_refused(mixed: Mixed) -> None:
    with pytest.raises(UserError, match=r"mine: every weight was trained, so it is a model of its own"):
        mixed.add("mine", method.build(tiny("llama"), Freeze(layers=1), quantized=False))
    tuning = made(mixed.model, "lora", rank=2)
    method.give_head(mixed.model, tuning, Score("classify", ["yes", "no"], 64))
    with pytest.raises(UserError, match=r"its head says labels \(classify\) and writes no text"):
        mixed.add("mine", tuning)
    broken = made(mixed.model, "lora", rank=2)
    with torch.no_grad():
        next(iter(broken.parameters.values()))[0, 0] = torch.nan
    with pytest.raises(UserError, match="some of its values are not finite"):
        mixed.add("mine", broken)
    assert list(slots.placed(mixed.model)) == ["lm_head"], "nothing of it is left"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_takes_its_own_size(dtype: torch.dtype) -> None:
    mixed = Mixed(tiny("llama").to(dtype), most_rows=32)
    sizes = []
    for number in range(12):
        tuning = made(mixed.model, "lora", number, rank=4)
        count = tuning.count
        sizes.append(mixed.add(f"a{number}", tuning).bytes)
    assert set(sizes) == {count * dtype.itemsize}
    assert mixed.stack_bytes == 0, "nothing but themselves until several are computed at once"
    with mixed.rows([(number, number + 1, f"a{number}") for number in range(12)]), torch.no_grad():
        mixed.model(input_ids=some_ids(12)[None], use_cache=False)
    assert mixed.stack_bytes == 8 * sizes[0], "32 rows are 8 of rank 4, however many there are"
    for number in range(12):
        mixed.remove(f"a{number}")
    assert mixed.stack_bytes == 0


@pytest.mark.parametrize("name", ["lora", "dora", "adapter", "prompt"])
def test_bf16_within_its_noise(name: str) -> None:
    sizes: dict[str, dict[str, Any]] = {"adapter": {"reduction": 4.0}, "prompt": {"tokens": 2, "init": "random"}}
    settings = sizes.get(name, {"rank": 4})
    model = tiny("llama").to(torch.bfloat16)
    slots.place(model, made(model, name, **settings).adapter)
    wanted = front.logits(model, IDS)[0].float()
    mixed = Mixed(tiny("llama").to(torch.bfloat16))
    mixed.add("a", made(mixed.model, name, **settings))
    mixed.add("b", made(mixed.model, "lora", 5, rank=4))
    ids_1T = torch.cat([torch.tensor([list(mixed.virtual_ids("a"))], dtype=torch.long), IDS, IDS], dim=1)
    first = ids_1T.shape[1] - 6
    with mixed.rows([(0, first, "a"), (first, first + 6, "b")]):
        found = mixed.model(input_ids=ids_1T, use_cache=False).logits[0, first - 6 : first].float()
    assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_another_thread_waits_for_the_row_that_is_computed(mixed: Mixed) -> None:
    prepared = mixed.prepare("a", made(mixed.model, "lora", rank=2))
    done = threading.Event()

    def add() -> None:
        mixed.place("a", prepared)
        done.set()

    thread = threading.Thread(target=add, daemon=True)
    with mixed.rows([(0, 6, "")]):
        thread.start()
        with mixed.rows([(0, 1, "")]):  # the same thread may describe another row within
            pass
        assert mixed.row is not None and mixed.row.tokens == 6
        time.sleep(0.05)
        assert not done.is_set() and list(slots.placed(mixed.model)) == ["lm_head"]
    assert done.wait(10)
    thread.join(10)
    logits(mixed, (0, 6, "a"))


def test_a_row_is_described_once(mixed: Mixed) -> None:
    for number in range(4):
        mixed.add(f"a{number}", made(mixed.model, "lora", number, rank=4))
    spans = [(0, 1, "a0"), (1, 2, "a1")]
    first = mixed._row(spans)
    assert mixed._row(spans) is first
    mixed._row([(0, 1, "a2"), (1, 2, "a3")])  # takes slots: what was said of them may no longer hold
    assert mixed._row(spans) is not first
    mixed.remove("a3")
    with pytest.raises(LookupError):
        mixed._row([(0, 1, "a2"), (1, 2, "a3")])


def test_says_what_differs_over_nf4(mixed: Mixed) -> None:
    tuning = made(mixed.model, "pissa", rank=2, niter="exact")
    assert mixed.prepare("a", tuning).notes == ()
    tuning.about["pissa"] = {"quantised": True, "weight_difference": {"nf4": 0.0123}}
    [note] = mixed.prepare("b", tuning).notes
    assert note.startswith("b was trained over NF4 codes of its own") and "differ by 1.2% from those trained" in note
