"""Attention by segments against dense masks written out by hand and by rule; the models' side is in test_packing.py."""

from __future__ import annotations

import itertools
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models_for_tests import EOS, PAD

from rpo.core.errors import InvalidArgument
from rpo.llm.logps import attention
from rpo.llm.logps.attention import ROUTED, Segments, forward_arguments, route
from rpo.llm.logps.head import plain_token_logps
from rpo.llm.logps.packing import SharedPrefixPath, misfit
from rpo.llm.logps.scoring import PaddedPath, PromptGroup

LENGTHS, PREFIXES = [7, 3, 1, 4, 9, 2, 1], [-1, 0, 0, 0, -1, 4, -1]
HEADS, KEY_HEADS, WIDTH = 4, 2, 8


def dense_mask(lengths: list[int], prefixes: list[int], window: int | None) -> torch.Tensor:
    """Return (T, T), whether a token sees another: one pair of tokens at a time."""
    tokens = []  # (segment, position)
    for segment, (length, prefix) in enumerate(zip(lengths, prefixes, strict=True)):
        start = 0 if prefix < 0 else lengths[prefix]
        tokens += [(segment, start + k) for k in range(length)]
    seen = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for (i, (segment, at)), (j, (other, before)) in itertools.product(enumerate(tokens), repeat=2):
        near = before <= at and (window is None or at - before < window)
        seen[i, j] = near and other in (segment, prefixes[segment])
    return seen


def by_hand(
    query: Any, key: Any, value: Any, seen: torch.Tensor, scaling: float, softcap: float | None, sinks: Any = None
) -> Any:
    """Return softmax of all T x T scores, one head at a time, in float64; a sink is one more score, and no value."""
    out = []
    for head in range(query.shape[1]):
        k, v = (tensor[0, head * key.shape[1] // query.shape[1]].double() for tensor in (key, value))
        scores = scaling * query[0, head].double() @ k.T
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~seen, float("-inf"))
        if sinks is not None:
            scores = torch.cat([scores, sinks[head].double().expand(len(scores), 1)], 1)
        out.append(scores.softmax(-1)[:, : len(v)] @ v)
    return torch.stack(out, 1)[None]


def tensors(dtype: torch.dtype = torch.float64, device: str = "cpu", width: int = WIDTH) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(LENGTHS), width) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in made]


every_kind = pytest.mark.parametrize(
    ("window", "softcap"), [(None, None), (3, None), (8, None), (50, None), (None, 2.0), (3, 2.0)]
)


def naive_varlen(query: Any, key: Any, value: Any, q_bounds: Any, k_bounds: Any, longest_q: int, longest_k: int, **how):
    """torch's varlen_attn by its documentation: sequence by sequence, the mask aligned at the bottom right."""
    assert (longest_q, longest_k) == (9, 11)
    left, right = how["window_size"]
    assert right == 0  # causal
    out = []
    for n in range(len(q_bounds) - 1):
        q = query[q_bounds[n] : q_bounds[n + 1]]
        k, v = (tensor[k_bounds[n] : k_bounds[n + 1]] for tensor in (key, value))
        back = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
        seen = (back >= 0) & ((back <= left) | (left < 0))
        heads = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
        out.append(by_hand(*heads, seen, how["scale"], None)[0])
    return torch.cat(out)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")  # a CPU has no gradient
@every_kind
@pytest.mark.parametrize("kernel", ["by_segment", "by_segment in blocks", "by_flex", "by_varlen"])
def test_every_kernel_equals_a_dense_mask(monkeypatch, kernel, window, softcap) -> None:
    """Output, and gradients where the kernel has them on a CPU, to 1e-12 in float64; varlen_attn is its documentation.

    The control is one key moved: a mask with another window.
    """
    monkeypatch.setattr(attention, "varlen_attention", lambda: naive_varlen)
    name, *in_blocks = kernel.split(" in ")
    if in_blocks:
        monkeypatch.setattr(attention, "QUERY_BLOCK", 2)
    if name == "by_varlen" and softcap is not None:
        pytest.skip("torch's kernel has no soft cap: FlexAttention's has")
    inputs, segments = tensors(), Segments(LENGTHS, PREFIXES)
    exact = by_hand(*inputs, dense_mask(LENGTHS, PREFIXES, window), 0.5, softcap)
    other = by_hand(*inputs, dense_mask(LENGTHS, PREFIXES, 2), 0.5, softcap)
    given = [tensor.detach() for tensor in inputs] if name == "by_flex" else inputs
    options = {} if name == "by_varlen" else {"softcap": softcap}
    out = getattr(segments, name)(*given, scaling=0.5, window=window, **options)
    torch.testing.assert_close(out, exact, rtol=0, atol=1e-12)
    assert (out - other).abs().max() > 1e-2
    if name != "by_flex":
        direction = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        ours, theirs = (torch.autograd.grad((made * direction).sum(), inputs) for made in (out, exact))
        for gradient, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


def test_torch_has_the_kernel_as_it_is_called() -> None:
    """The arguments by name, and grouped heads told where torch asks for that."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    named = inspect.signature(varlen_attn).parameters
    assert {"scale", "window_size"} <= set(named)
    assert attention.varlen_attention().keywords == ({"enable_gqa": True} if "enable_gqa" in named else {})


@pytest.mark.parametrize(
    ("dtype", "width", "how", "wanted", "expected"),
    [
        (torch.bfloat16, 64, {}, None, "varlen"),
        (torch.float16, 256, {"window": 3}, None, "varlen"),
        (torch.bfloat16, 264, {}, None, "flex"),
        (torch.float32, 64, {}, None, "flex"),
        (torch.bfloat16, 64, {"softcap": 50.0}, None, "flex"),
        (torch.bfloat16, 64, {"sinks": torch.zeros(4)}, None, "flex"),
        (torch.float32, 8, {}, None, "segment"),  # FlexAttention has no kernel of so small heads
        (torch.bfloat16, 64, {}, "segment", "segment"),
        (torch.bfloat16, 64, {}, "flex", "flex"),
        (torch.bfloat16, 64, {"softcap": 50.0}, "varlen", "segment"),  # wanted where it can be
    ],
)
def test_which_kernel_attends_on_a_gpu(monkeypatch, dtype, width, how, wanted, expected) -> None:
    """By a stand-in for a query on a GPU; on a CPU it is always segment by segment."""
    segments, taken = Segments(LENGTHS, PREFIXES, wanted), []
    for kernel in ("varlen", "flex", "segment"):
        monkeypatch.setattr(segments, f"by_{kernel}", lambda *_, kernel=kernel, **__: taken.append(kernel))
    monkeypatch.setattr(attention, "_is_ampere", lambda device: True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    query = SimpleNamespace(is_cuda=True, dtype=dtype, shape=(1, HEADS, sum(LENGTHS), width))
    query.device = torch.device("cuda")
    segments.attend(query, query, query, scaling=1.0, **how)
    monkeypatch.setattr(query, "is_cuda", False)
    segments.attend(query, query, query, scaling=1.0, **how)
    assert taken == [expected, "segment"]


def test_the_environment_names_the_kernel(monkeypatch) -> None:
    monkeypatch.setenv("RPO_ATTENTION", "segment")
    assert Segments(LENGTHS, PREFIXES).kernel == "segment"
    assert Segments(LENGTHS, PREFIXES, "flex").kernel == "flex"
    monkeypatch.setenv("RPO_ATTENTION", "flash")
    with pytest.raises(InvalidArgument, match="RPO_ATTENTION: expected one of .*varlen.*got 'flash'"):
        Segments(LENGTHS, PREFIXES)


def test_who_sees_whom_written_out() -> None:
    """A prompt of two tokens, responses of two and one after it, a sequence of two: all of it, and a window of 2.

    With equal scores a token's output is the mean of what it sees; values are the unit vectors.
    """
    segments, size = Segments([2, 2, 1, 2], [-1, 0, 0, -1]), 7
    query = key = torch.zeros(1, 1, size, 4)
    value = torch.eye(size)[None, None]
    seen = segments.attend(query, key, value, scaling=1.0)[0, :, 0] > 0
    windowed = segments.attend(query, key, value, scaling=1.0, window=2)[0, :, 0] > 0
    assert ["".join("x" if s else "." for s in row) for row in seen] == [
        "x......",
        "xx.....",
        "xxx....",  # first response
        "xxxx...",
        "xx..x..",  # second: the prompt and itself, not the first
        ".....x.",  # the next sequence
        ".....xx",
    ]
    assert ["".join("x" if s else "." for s in row) for row in windowed] == [
        "x......",
        "xx.....",
        ".xx....",
        "..xx...",
        ".x..x..",  # by position: the prompt's last token is one back, though three back in the row
        ".....x.",
        ".....xx",
    ]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@every_kind
@pytest.mark.parametrize("kernel", ["by_segment", "by_flex"])
def test_sinks_take_their_part_of_the_softmax(kernel, window, softcap) -> None:
    """Output to 1e-12 in float64, and gradients, the sinks' too; `attend` hands them on. Control: without sinks."""
    inputs, segments = tensors(), Segments(LENGTHS, PREFIXES)
    sinks = torch.tensor([0.0, 2.0, -3.0, 1.0], dtype=torch.float64, requires_grad=True)
    seen = dense_mask(LENGTHS, PREFIXES, window)
    exact = by_hand(*inputs, seen, 0.5, softcap, sinks)
    given = [tensor.detach() for tensor in (*inputs, sinks)] if kernel == "by_flex" else [*inputs, sinks]
    out = getattr(segments, kernel)(*given[:3], scaling=0.5, window=window, softcap=softcap, sinks=given[3])
    torch.testing.assert_close(out, exact, rtol=0, atol=1e-12)
    assert (out - by_hand(*inputs, seen, 0.5, softcap)).abs().max() > 1e-2
    if kernel == "by_segment":
        attended = segments.attend(*inputs, scaling=0.5, window=window, softcap=softcap, sinks=sinks)
        direction = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        sides = (torch.autograd.grad((made * direction).sum(), [*inputs, sinks]) for made in (attended, exact))
        for gradient, expected in zip(*sides, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
            assert expected.norm() > 1e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: kernels of one call a layer")
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@every_kind
@pytest.mark.parametrize("kernel", ["varlen", "flex", "segment"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuda_kernels_equal_a_dense_mask(dtype, kernel, window, softcap) -> None:
    """Output and gradients against float64; of a kernel that cannot do the case, those of the one in its place."""
    inputs, kept = tensors(dtype, "cuda", 32), tensors(width=32)
    seen = dense_mask(LENGTHS, PREFIXES, window)
    out = Segments(LENGTHS, PREFIXES, kernel).attend(*inputs, scaling=0.5, window=window, softcap=softcap)
    exact = by_hand(*kept, seen, 0.5, softcap)
    tolerance = 1e-4 if dtype is torch.float32 else 5e-2
    torch.testing.assert_close(out.cpu().double(), exact, rtol=tolerance, atol=tolerance)
    pairs = zip(torch.autograd.grad(out.sum(), inputs), torch.autograd.grad(exact.sum(), kept), strict=True)
    for gradient, expected in pairs:
        assert (gradient.cpu().double() - expected).norm() < tolerance * max(1.0, float(expected.norm()))


# --- in a model ----------------------------------------------------------------------------------

GROUPS = [PromptGroup([7, 8, 9], [[10, EOS], [11, 12, 13, EOS]]), PromptGroup([20, 21], [[22, 23, EOS], [24, EOS]])]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_without_segments_a_routed_model_is_what_it_was(tiny_model, tmp_path, family, implementation) -> None:
    """Padded log-probabilities, with padding on the left too, and greedy text: the same bits; the saved file says
    nothing of it. Routing twice is routing once."""
    model = tiny_model(family, attn_implementation=implementation)

    def results() -> list[torch.Tensor]:
        paths = [PaddedPath(PAD), PaddedPath(PAD, padding_side="left")]
        ids = torch.tensor([[7, 8, 9]])
        text = model.generate(ids, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(ids))
        with torch.no_grad():
            return [path.logps(model, path.collate(GROUPS)) for path in paths] + [text]

    before = results()
    route(model)
    route(model)
    assert model.config._attn_implementation == ROUTED + implementation
    assert all(map(torch.equal, results(), before))
    model.save_pretrained(tmp_path)
    assert "rpo" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tensor_that_attention_does_not_take_is_refused(monkeypatch, tiny_model, dtype) -> None:
    """A layer that hands over one more by name, of which the result would not know, is padded, in 16 bits too."""
    model = tiny_model("llama", dtype=dtype)
    assert misfit(SharedPrefixPath(), model) is None
    module = sys.modules[type(model).__module__]
    layer = type(model.model.layers[0].self_attn)
    original = layer.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs, block_bias=torch.zeros(1))

    monkeypatch.setattr(layer, "forward", forward)
    monkeypatch.setattr(module, "eager_attention_forward", lambda *a, block_bias=None, **k: None)
    assert re.search('expected "padded" .* got block_bias', str(misfit(SharedPrefixPath(), model)))
    path = SharedPrefixPath()
    with pytest.raises(InvalidArgument, match="path: expected .*block_bias"):
        path.logps(model, path.collate(GROUPS))


def test_attention_dropout_is_refused(tiny_model) -> None:
    model = tiny_model("llama", attention_dropout=0.1).train()
    path = SharedPrefixPath()
    with pytest.raises(InvalidArgument, match="disable_dropout: expected True.* attention dropout 0.1"):
        path.logps(model, path.collate(GROUPS))


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The number of elements of the largest tensor made under it, and of all tensors kept for the gradient."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_memory_grows_with_the_tokens_of_the_row(tiny_model, family) -> None:
    """Four times the tokens: the largest tensor, and what is kept for the gradient, are four times as large.

    The control is transformers' own packing by position_ids, with a mask of T x T: sixteen times.
    """
    model, path = tiny_model(family), SharedPrefixPath(fused_head=False)

    def measured(n: int, *, masked: bool) -> tuple[int, int]:
        inputs = path.collate([PromptGroup([7] * 16, [[8] * 8, [9] * 8])] * n)
        fed = {name: inputs[name] for name in ("input_ids", "position_ids")}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.data_ptr()] = tensor.numel()
            return tensor

        with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            if masked:
                plain_token_logps(model, inputs["predicting"], inputs["targets"], **fed)
            else:
                path.logps(model, inputs).sum().backward()
        return largest.elements, sum(kept.values())

    control = measured(16, masked=True)[0], measured(64, masked=True)[0]
    assert control[1] > 15 * control[0]
    few, many = measured(16, masked=False), measured(64, masked=False)
    assert many[0] <= 4 * few[0]
    assert many[1] <= 4.01 * few[1]


def test_a_model_without_eager_attention_of_its_own_is_asked_for_the_one_it_had() -> None:
    """What is looked up for a module without segments is the registered function of the name."""
    seen: dict[str, Any] = {}

    def plain(module: Any, *args: Any, **kwargs: Any) -> tuple[str, None]:
        seen.update(kwargs)
        return "plain", None

    attention.ALL_ATTENTION_FUNCTIONS.register("for-this-test", plain)
    try:
        config = SimpleNamespace(_attn_implementation="for-this-test")
        module = torch.nn.Module()
        module.config = config  # type: ignore[assignment]
        route(module)
        function = attention.ALL_ATTENTION_FUNCTIONS[config._attn_implementation]
        assert function(module, None, None, None, None, scaling=2.0, sliding_window=3) == ("plain", None)
        assert seen == {"scaling": 2.0, "dropout": 0.0, "sliding_window": 3}
    finally:
        for name in ("for-this-test", ROUTED + "for-this-test"):
            del attention.ALL_ATTENTION_FUNCTIONS._global_mapping[name]


def test_no_mask_is_built_for_segments(tiny_model) -> None:
    """Every layer is handed the one-element mask that the model was."""
    model, seen = tiny_model("mistral"), []
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["attention_mask"].shape), with_kwargs=True
        )
    path = SharedPrefixPath()
    inputs = path.collate(GROUPS)
    route(model)
    fed = {name: inputs[name] for name in ("input_ids", "position_ids")}
    segments = Segments(inputs["segment_lengths"].tolist(), inputs["segment_prefixes"].tolist())
    model(**fed, **forward_arguments(segments, torch.device("cpu")))
    assert set(seen) == {(1, 1, 1, 1)}
    assert segments.windows == [5, 5]
