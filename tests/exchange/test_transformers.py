"""Folders are what the real transformers loads, and models of the real transformers are read."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from counterparts import (
    GLM4,
    MIXTRAL,
    MODELS,
    QWEN3,
    VOCABULARY,
    T,
    V,
    checkpoint_of,
    model_of,
    name_of,
)
from torch import Tensor

from makemoe.checkpoint.inference import rebuilt
from makemoe.data.tokenizer import ByteTokenizer, CharTokenizer
from makemoe.exchange.export import export
from makemoe.exchange.take import take
from makemoe.model.generate import Sampler, generate
from makemoe.model.positions import RotaryPositions
from makemoe.model.transformer import MoETransformer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", reason="the extra `bench` is not installed")

CLOSE = 1e-5


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers itself
        yield


def theirs(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@torch.no_grad()
def logits_of(model: Any, ids: Tensor) -> Tensor:
    found: Tensor = model(ids)[0] if isinstance(model, MoETransformer) else model(ids).logits
    return found


# -- export


@pytest.mark.parametrize("case", MODELS)
def test_logits_and_greedy_texts_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    model = model_of(MODELS[case], shift=1.0)
    kind = export(checkpoint_of(model, MODELS[case]), "x.ckpt", tmp_path / "out").kind
    other = theirs(tmp_path / "out")
    assert type(other).__name__ == kind == name_of(case)
    ids = torch.randint(V, (4, T))
    expected = logits_of(other, ids)
    assert expected.std() > 0.5
    assert (logits_of(model, ids) - expected).abs().max() < CLOSE
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = "a b"
    inputs = tokenizer(prompt, return_tensors="pt")
    greedy = other.generate(**inputs, max_new_tokens=T - 3, do_sample=False)
    ours = CharTokenizer(VOCABULARY)
    own = generate(model, [ours.encode(prompt).tolist()], T - 3, Sampler([0], temperature=0.0))
    assert tokenizer.decode(greedy[0]) == prompt + ours.decode(own[0])


def test_over_long_contexts_only_the_rounding_of_angles_grows(tmp_path: Path) -> None:
    """transformers computes the angles of rotary positions in float32, makemoe in float64."""
    length = 256
    parts = MIXTRAL | {"block_size": length, "positions": RotaryPositions}
    model = model_of(parts)
    export(checkpoint_of(model, parts), "x.ckpt", tmp_path / "out")
    other = theirs(tmp_path / "out")
    ids = torch.randint(V, (8, length))
    expected, before = logits_of(other, ids), logits_of(model, ids)
    exact = logits_of(model.double(), ids)
    model.float()
    rounded = other.model.rotary_emb(torch.zeros(1), torch.arange(length)[None])
    positions = model.position_embedding
    for own, angles in zip((positions.cos_TP, positions.sin_TP), rounded, strict=True):
        angles_TP = angles[0, :, : own.shape[1]]
        assert 1e-6 < (own - angles_TP).abs().max() < 1e-4
        own.copy_(angles_TP)
    assert (logits_of(model, ids) - expected).abs().max() < CLOSE
    assert (before - exact).abs().max() < CLOSE


@pytest.mark.parametrize("parts", [MIXTRAL, QWEN3, GLM4], ids=["Mixtral", "Qwen3", "GLM4"])
def test_every_tensor_is_used_and_none_is_missing(parts: Any, tmp_path: Path) -> None:
    export(checkpoint_of(model_of(parts), parts), "x.ckpt", tmp_path / "out")
    _, told = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(told.values()), told


def test_samples_are_drawn_as_predict_draws_them_and_no_token_ends_a_text(tmp_path: Path) -> None:
    """By default, transformers is greedy, or takes ids 1 and 2 for the ends of a text."""
    export(checkpoint_of(model_of(MIXTRAL), MIXTRAL), "x.ckpt", tmp_path / "out")
    other = theirs(tmp_path / "out")
    torch.manual_seed(1)
    ids = other.generate(torch.zeros(300, 1, dtype=torch.int64), max_new_tokens=T - 1)
    assert ids.shape == (300, T)
    assert (ids[:, -1, None] == torch.arange(V)).any(0).all()
    assert (ids == 2).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_keep_their_type(dtype: torch.dtype, tmp_path: Path) -> None:
    model = model_of(GLM4).to(dtype)
    checkpoint = checkpoint_of(model, GLM4)
    export(checkpoint, "x.ckpt", tmp_path / "out")
    other = theirs(tmp_path / "out")
    assert other.dtype == dtype
    assert torch.equal(other.lm_head.weight, model.head.weight)
    assert_same_weights(take(tmp_path / "out").checkpoint, checkpoint)


def assert_same_weights(one: Any, other: Any) -> None:
    """Bit for bit, and in the same type."""
    one, other = one["state_dict"], other["state_dict"]
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        assert one[name].dtype == tensor.dtype, name
        assert torch.equal(one[name], tensor), name


@pytest.mark.parametrize("case", MODELS)
def test_what_was_exported_is_read_back_bit_for_bit(case: str, tmp_path: Path) -> None:
    model = model_of(MODELS[case])
    checkpoint = checkpoint_of(model, MODELS[case])
    export(checkpoint, "x.ckpt", tmp_path / "out")
    taken = take(tmp_path / "out")
    assert taken.notes == []
    assert_same_weights(taken.checkpoint, checkpoint)
    again, tokenizer = rebuilt(taken.checkpoint, "again")
    ids = torch.randint(V, (4, T))
    assert torch.equal(logits_of(again, ids), logits_of(model, ids))
    assert tokenizer.init_args() == {"vocabulary": VOCABULARY}


def test_a_shift_of_evaluation_becomes_a_part_of_the_bias(tmp_path: Path) -> None:
    model = model_of(GLM4, shift=1.0)
    export(checkpoint_of(model, GLM4), "x.ckpt", tmp_path / "out")
    again, _ = rebuilt(take(tmp_path / "out").checkpoint, "again")
    pairs = zip(model.routers().values(), again.routers().values(), strict=True)
    for one, other in pairs:
        assert one.eval_shift_E.abs().min() > 0
        assert torch.equal(other.bias_E, one.bias_E + one.eval_shift_E)
        assert not other.eval_shift_E.any()


# -- import


COMMON: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": T,
    "num_experts_per_tok": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    "initializer_range": 0.5,
}
WIDTHS = {"moe_intermediate_size": 24, "intermediate_size": 48}
FOREIGN: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral": ("Mixtral", {"intermediate_size": 24, "num_local_experts": 5}),
    "Mixtral with shared keys": (
        "Mixtral",
        {"intermediate_size": 24, "num_local_experts": 5, "num_key_value_heads": 2},
    ),
    "Mixtral, a window as wide as its context": (
        "Mixtral",
        {"intermediate_size": 8, "num_local_experts": 2, "sliding_window": T},
    ),
    "Qwen3-MoE, every second layer dense": (
        "Qwen3Moe",
        {**WIDTHS, "num_experts": 5, "norm_topk_prob": True, "decoder_sparse_step": 2},
    ),
    "Qwen3-MoE with one head of keys, tied": (
        "Qwen3Moe",
        {
            **WIDTHS,
            "num_experts": 5,
            "norm_topk_prob": True,
            "num_key_value_heads": 1,
            "mlp_only_layers": [2],
            "tie_word_embeddings": True,
        },
    ),
    "Qwen3-MoE, one expert per token": (
        "Qwen3Moe",
        {**WIDTHS, "num_experts": 5, "num_experts_per_tok": 1},
    ),
    "GLM-4-MoE": ("Glm4Moe", {**WIDTHS, "n_routed_experts": 5}),
    "GLM-4-MoE with QK-norm and all of each head turned": (
        "Glm4Moe",
        {
            **WIDTHS,
            "n_routed_experts": 5,
            "use_qk_norm": True,
            "partial_rotary_factor": 1.0,
            "first_k_dense_replace": 0,
            "n_shared_experts": 3,
            "num_key_value_heads": 2,
        },
    ),
}


def foreign(case: str, **changes: Any) -> Any:
    """A model of transformers, with weights far from uniform."""
    name, settings = FOREIGN[case]
    config = getattr(transformers, f"{name}Config")(**COMMON | settings | changes)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    for buffer_name, buffer in model.named_buffers():
        if "correction_bias" in buffer_name:
            buffer.normal_(std=0.3)
    return model


def saved(model: Any, folder: Path, **options: Any) -> Path:
    """A folder as transformers writes it, with a tokenizer of characters."""
    model.save_pretrained(folder, **options)
    (folder / "tokenizer.json").write_text(CharTokenizer(VOCABULARY).to_json(), encoding="utf-8")
    return folder


@pytest.mark.parametrize("case", FOREIGN)
def test_a_model_of_transformers_computes_the_same_here(case: str, tmp_path: Path) -> None:
    other = foreign(case)
    taken = take(saved(other, tmp_path / "theirs"))
    model, tokenizer = rebuilt(taken.checkpoint, "theirs")
    ids = torch.randint(V, (4, T))
    expected = logits_of(other, ids)
    assert expected.std() > 0.5
    assert (logits_of(model, ids) - expected).abs().max() < CLOSE
    assert tokenizer.decode([3, 4]) == "ab"
    shared = other.config.num_key_value_heads < other.config.num_attention_heads
    assert [("repeated" in note) for note in taken.notes] == [True] * shared


@pytest.mark.parametrize("case", ["Mixtral", "GLM-4-MoE"])
def test_files_in_several_parts_are_read(case: str, tmp_path: Path) -> None:
    other = foreign(case)
    whole = take(saved(other, tmp_path / "whole")).checkpoint
    parts = saved(other, tmp_path / "parts", max_shard_size="5KB")
    assert len(list(parts.glob("*.safetensors"))) > 3
    assert not (parts / "model.safetensors").exists()
    assert_same_weights(take(parts).checkpoint, whole)


def test_what_is_imported_can_be_exported_again(tmp_path: Path) -> None:
    for number, case in enumerate(FOREIGN):
        taken = take(saved(foreign(case), tmp_path / f"theirs{number}"))
        export(taken.checkpoint, "x.ckpt", tmp_path / f"ours{number}")
        assert_same_weights(take(tmp_path / f"ours{number}").checkpoint, taken.checkpoint)


def test_a_shorter_context_computes_the_same_for_shorter_texts(tmp_path: Path) -> None:
    other = foreign("Mixtral")
    taken = take(saved(other, tmp_path / "theirs"), block_size=5)
    assert taken.notes == [f"contexts of 5 tokens, not {T}"]
    model, _ = rebuilt(taken.checkpoint, "theirs")
    assert model.block_size == 5
    ids = torch.randint(V, (4, 5))
    assert (logits_of(model, ids) - logits_of(other, ids)).abs().max() < CLOSE


def test_tokens_that_only_the_model_has_are_left_out(tmp_path: Path) -> None:
    for number, case in enumerate(("Mixtral", "Qwen3-MoE with one head of keys, tied")):
        other = foreign(case, vocab_size=V + 5)
        taken = take(saved(other, tmp_path / str(number)))
        assert taken.notes[-1] == "5 tokens left out, which the tokenizer does not have"
        model, _ = rebuilt(taken.checkpoint, "theirs")
        ids = torch.randint(V, (4, T))
        difference = logits_of(model, ids) - logits_of(other, ids)[..., :V]
        assert difference.abs().max() < CLOSE


def test_layers_that_predict_several_tokens_at_once_are_left_out(tmp_path: Path) -> None:
    folder = saved(foreign("GLM-4-MoE", num_mtp_layers=2), tmp_path / "theirs")
    before = take(folder).checkpoint
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = safetensors.load_file(folder / "model.safetensors")
    tensors |= {f"model.layers.{n}.eh_proj.weight": torch.zeros(2, 2) for n in (3, 4)}
    safetensors.save_file(tensors, folder / "model.safetensors")
    assert_same_weights(take(folder).checkpoint, before)


# -- tokenizers


@pytest.mark.parametrize("parts", [MIXTRAL, QWEN3, GLM4], ids=["Mixtral", "Qwen3", "GLM4"])
@pytest.mark.parametrize("tokenizer", [CharTokenizer(VOCABULARY), ByteTokenizer()], ids=["c", "b"])
def test_a_tokenizer_that_transformers_saves_again_is_still_known(
    parts: Any, tokenizer: Any, tmp_path: Path
) -> None:
    parts = parts | {"vocab_size": tokenizer.vocab_size}
    export(checkpoint_of(model_of(parts), parts, tokenizer), "x.ckpt", tmp_path / "out")
    other = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = VOCABULARY * 3 + " ! a  \n\n"
    ids = tokenizer.encode(text).tolist()
    assert other(text)["input_ids"] == ids
    assert other.decode(ids) == text
    assert len(other) == tokenizer.vocab_size
    assert other.model_max_length == T
    theirs(tmp_path / "out").save_pretrained(tmp_path / "again")
    other.save_pretrained(tmp_path / "again")
    taken = take(tmp_path / "again").checkpoint
    assert taken["makemoe"]["tokenizer"] == tokenizer.spec()
