"""Folders that are not read: each is refused in one line, and nothing is written."""

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from counterparts import GLM4, MIXTRAL, QWEN3, checkpoint_of, model_of

from makemoe.errors import CheckpointError, MakeMoEError, UsageError
from makemoe.exchange.config import read_json
from makemoe.exchange.export import export
from makemoe.exchange.known import KNOWN
from makemoe.exchange.take import take
from makemoe.exchange.weights import as_one_in, as_one_out, of_each_expert, queries_keys_values

save_file = pytest.importorskip("safetensors.torch").save_file
load_file = pytest.importorskip("safetensors.torch").load_file

PARTS = {"mixtral": MIXTRAL, "qwen3": QWEN3, "glm4": GLM4, "plain": MIXTRAL}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind, as an export writes it; not to be written to."""
    root = tmp_path_factory.mktemp("written")
    for name, parts in PARTS.items():
        form = "safetensors" if name == "plain" else "transformers"
        export(checkpoint_of(model_of(parts), parts), "x.ckpt", root / name, form)
    return root


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A folder of one's own."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(written / name, tmp_path / name))

    return copied


def change(folder: Path, file: str, **values: Any) -> None:
    """Set settings in a JSON file; those of `None` in Python become null."""
    held = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(held | values))


def refuse(folder: Path, words: str, kind: type[MakeMoEError] = CheckpointError) -> None:
    with pytest.raises(kind, match=re.escape(words)) as told:
        take(folder)
    assert "\n" not in str(told.value)


WRONG_SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("mixtral", {"architectures": ["LlamaForCausalLM"]}, "is of the architecture 'LlamaForCausal"),
    ("mixtral", {"architectures": None, "model_type": "gpt2"}, "is of the architecture 'gpt2'"),
    ("mixtral", {"architectures": [7]}, "makemoe has counterparts of MixtralForCausalLM, Qwen3Mo"),
    ("mixtral", {"auto_map": {"AutoModel": "m.M"}}, "config.json asks to run code (auto_map)"),
    ("mixtral", {"hidden_size": "wide"}, "hidden_size is 'wide', not an integer of 0 or more"),
    ("mixtral", {"hidden_size": True}, "hidden_size is True, not an integer"),
    ("mixtral", {"hidden_size": -16}, "hidden_size is -16, not an integer of 0 or more"),
    ("mixtral", {"hidden_size": None}, "config.json lacks hidden_size"),
    ("mixtral", {"hidden_size": 0}, "2 heads of 8, which are not its width of 0"),
    (
        "mixtral",
        {"num_attention_heads": 3},
        "no counterpart of 3 heads, 2 of keys and values, for a",
    ),
    ("mixtral", {"num_key_value_heads": 0}, "no counterpart of 2 heads, 0 of keys and values"),
    ("mixtral", {"head_dim": 16}, "no counterpart of 2 heads of 16, which are not its width of 16"),
    ("mixtral", {"rms_norm_eps": "small"}, "rms_norm_eps is 'small', not a number"),
    ("mixtral", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, not a number"),
    ("mixtral", {"rms_norm_eps": 0}, "eps 0.0 is out of range"),
    ("mixtral", {"tie_word_embeddings": 1}, "tie_word_embeddings is 1, not true or false"),
    ("mixtral", {"hidden_act": 3}, "hidden_act is 3, not a string"),
    ("mixtral", {"hidden_act": "mish"}, "no counterpart of the activation 'mish'"),
    ("mixtral", {"rope_parameters": [1]}, "rope_parameters is [1], not an object"),
    (
        "mixtral",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}},
        "no counterpart of rotary positions of the type 'yarn'",
    ),
    ("mixtral", {"sliding_window": 4}, "no counterpart of a sliding window of 4 tokens"),
    ("mixtral", {"num_experts_per_tok": 1}, "one expert per token, of weight 1"),
    ("mixtral", {"num_experts_per_tok": 9}, "top_k 9 must be between 1 and num_experts 4"),
    ("mixtral", {"intermediate_size": 0}, "experts of width 0"),
    ("mixtral", {"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000 is more than any"),
    ("mixtral", {"max_position_embeddings": 10**13}, "block_size 10000000000000 takes at least"),
    ("mixtral", {"num_local_experts": 10**10}, "num_experts 10000000000 takes at least"),
    ("mixtral", {"quantization_config": {"bits": 4}}, "no counterpart of quantised weights"),
    ("mixtral", {"vocab_size": 10}, "a tokenizer of 11 tokens, but its model has 10"),
    ("mixtral", {"num_hidden_layers": 4}, "lacks 19 tensors, for example model.layers.3.block_s"),
    ("mixtral", {"num_hidden_layers": 2}, "has unknown 19 tensors, for example model.layers.2.b"),
    ("mixtral", {"num_local_experts": 5}, "lacks 9 tensors"),
    ("mixtral", {"intermediate_size": 23}, "w1.weight has the shape [24, 16], not [23, 16]"),
    ("mixtral", {"num_key_value_heads": 1}, "k_proj.weight has the shape [16, 16], not [8, 16]"),
    ("mixtral", {"vocab_size": 12}, "embed_tokens.weight has the shape [11, 16], not [12, 16]"),
    ("qwen3", {"mlp_only_layers": [1, "2"]}, "mlp_only_layers is [1, '2'], not a list of integers"),
    ("qwen3", {"norm_topk_prob": False}, "weights of experts that are not normalised"),
    ("qwen3", {"attention_bias": True}, "no counterpart of biases of attention (attention_bias)"),
    ("qwen3", {"use_sliding_window": True}, "no counterpart of a sliding window"),
    ("qwen3", {"intermediate_size": 30}, "dense layers of width 30, which is no multiple of 24"),
    ("glm4", {"n_group": 2}, "no counterpart of groups of experts (n_group)"),
    ("glm4", {"routed_scaling_factor": 2.5}, "no counterpart of a routed_scaling_factor of 2.5"),
    ("glm4", {"first_k_dense_replace": 2}, "lacks"),
    ("glm4", {"use_qk_norm": True}, "lacks 6 tensors, for example model.layers.0.self_attn.k_norm"),
    (
        "glm4",
        {"n_group": 2, "hidden_act": "mish", "attention_bias": True},
        "of the activation 'mish', biases of attention (attention_bias), groups of experts",
    ),
    (
        "glm4",
        {"rope_parameters": {"partial_rotary_factor": 0.4}},
        "RotaryPositions: share 0.4 of a head of 8 numbers is 3",
    ),
]


@pytest.mark.parametrize(("name", "values", "words"), WRONG_SETTINGS, ids=lambda v: str(v)[:40])
def test_settings_that_are_wrong_or_of_another_model_are_named(
    copy: Callable[[str], Path], name: str, values: dict[str, Any], words: str
) -> None:
    folder = copy(name)
    change(folder, "config.json", **values)
    refuse(folder, words)


# -- files


def without(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).unlink()


def holding(file: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(data)


def cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def with_tensors(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edited


def in_shards(**index: Any) -> Callable[[Path], None]:
    """Two files with an index, of which a part is changed."""

    def split(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        places = {name: f"{'ab'[number % 2]}.safetensors" for number, name in enumerate(names)}
        for file in "ab":
            part = {n: t for n, t in tensors.items() if places[n] == f"{file}.safetensors"}
            save_file(part, folder / f"{file}.safetensors")
        whole = {"weight_map": places} | {k: v(places) for k, v in index.items()}
        (folder / "model.safetensors.index.json").write_text(json.dumps(whole))

    return split


def beyond_memory(folder: Path) -> None:
    """A header that claims more bytes than the file has."""
    header = {"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    data = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(data)) + data)


GATE = "model.layers.0.block_sparse_moe.gate.weight"
WRONG_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no settings": (without("config.json"), "holds no model: it has neither config.json nor"),
    "no weights": (without("model.safetensors"), "it has neither model.safetensors nor"),
    "pickled weights": (pickled, "has pickled weights, which may run code: only model.safetensors"),
    "settings that are not JSON": (holding("config.json", b"{"), "config.json is not JSON"),
    "settings that are not UTF-8": (holding("config.json", b'{"a": "\xff"}'), "is not JSON"),
    "settings without end": (holding("config.json", b"[" * 100_000), "config.json is not JSON"),
    "a list of settings": (holding("config.json", b"[1]"), "holds a list, not an object"),
    "empty weights": (holding("model.safetensors", b""), "is truncated or damaged"),
    "weights of another kind": (holding("model.safetensors", b"PK" * 99), "truncated or damaged"),
    "cut weights": (cut, "model.safetensors is truncated or damaged"),
    "weights that are not there": (beyond_memory, "is truncated or damaged"),
    "no tokenizer": (without("tokenizer.json"), "has no tokenizer.json: save its tokenizer with"),
    "a tokenizer that is not JSON": (holding("tokenizer.json", b"x"), "tokenizer.json is not JSON"),
    "another tokenizer": (
        holding("tokenizer.json", b'{"model": {"type": "Unigram"}}'),
        "tokenizer.json: only tokenizers of characters or of bytes are read",
    ),
    "a tokenizer that is code": (
        lambda folder: change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": "x.T"}),
        "tokenizer_config.json asks to run code (auto_map), which is never done",
    ),
    "a tokenizer that wants trust": (
        lambda folder: change(folder, "tokenizer_config.json", trust_remote_code=True),
        "tokenizer_config.json asks to run code (trust_remote_code)",
    ),
    "weights that are not finite": (
        with_tensors(lambda tensors: tensors["model.norm.weight"].fill_(float("nan"))),
        "norm.weight is not finite",
    ),
    "a tensor too few": (
        with_tensors(lambda tensors: tensors.pop("model.norm.weight")),
        "lacks 1 tensors, for example model.norm.weight",
    ),
    "a tensor too many": (
        with_tensors(lambda tensors: tensors.update(other=torch.zeros(2))),
        "has unknown 1 tensors, for example other",
    ),
    "a tensor of another shape": (
        with_tensors(lambda tensors: tensors.update({GATE: torch.zeros(4, 15)})),
        "gate.weight has the shape [4, 15], not [4, 16]",
    ),
    "integers": (
        with_tensors(lambda tensors: tensors.update({GATE: torch.zeros(4, 16).char()})),
        "has weights of the type I8: only F32, BF16, F16, F64 are read, no quantised ones",
    ),
    "several types": (
        with_tensors(lambda tensors: tensors.update({GATE: torch.zeros(4, 16).bfloat16()})),
        "has weights of several types (BF16, F32): save it in one",
    ),
    "an index without files": (
        in_shards(weight_map=lambda places: {}),
        "model.safetensors.index.json has no weight_map",
    ),
    "an index that leads out of the folder": (
        in_shards(weight_map=lambda places: places | {"x": "../a.safetensors"}),
        "'../a.safetensors' is not the name of a file",
    ),
    "an index of other tensors": (
        in_shards(weight_map=lambda places: places | {"x": "a.safetensors"}),
        "a.safetensors lacks 1 tensors of model.safetensors.index.json, for example x",
    ),
    "a file too few": (
        in_shards(weight_map=lambda places: places | {"x": "c.safetensors"}),
        "is incomplete: it has no c.safetensors",
    ),
    "a file that no system has": (
        in_shards(weight_map=lambda places: places | {"x": "a\0b"}),
        "embedded null byte",
    ),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_files_that_are_wrong_are_named(copy: Callable[[str], Path], case: str) -> None:
    folder = copy("mixtral")
    damage, words = WRONG_FILES[case]
    damage(folder)
    refuse(folder, words)


def test_two_files_with_an_index_are_one_model(copy: Callable[[str], Path], written: Path) -> None:
    folder = copy("mixtral")
    in_shards()(folder)
    one, other = (take(path).checkpoint["state_dict"] for path in (folder, written / "mixtral"))
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "none", "none does not exist: give a folder with a model")
    (tmp_path / "file").write_text("x")
    refuse(tmp_path / "file", "is a file: give a folder with a model")
    refuse(tmp_path, "holds no model")


@pytest.mark.parametrize("block_size", [0, -1, 13])
def test_a_context_longer_than_the_model_s_is_refused(written: Path, block_size: int) -> None:
    with pytest.raises(UsageError, match=rf"--block_size {block_size} is out of range: "):
        take(written / "mixtral", block_size)


# -- plain weights


def nested(**changes: Any) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        held = json.loads((folder / "makemoe.json").read_text())
        change(folder, "makemoe.json", model=held["model"] | changes)

    return changed


WRONG_PLAIN: dict[str, tuple[Callable[[Path], object], str]] = {
    "another format": (lambda f: change(f, "makemoe.json", format=2), "makemoe.json has format 2"),
    "no model": (lambda f: change(f, "makemoe.json", model=3), "lacks the settings of the model"),
    "no tokenizer": (lambda f: change(f, "makemoe.json", tokenizer=None), "or of its tokenizer"),
    "a class of a stranger": (
        nested(norm={"class_path": "stranger.Norm"}),
        "the checkpoint uses the class stranger.Norm: if you trust that code, add --trust stranger",
    ),
    "a wrong kind": (nested(n_layer="three"), "its model.n_layer is 'three', not an integer"),
    "another size": (nested(n_embd=32), "has the shape"),
    "too large": (nested(n_embd=1 << 40), "holds a model that cannot be built: n_embd"),
    "a tensor too few": (
        with_tensors(lambda tensors: tensors.pop("norm.weight")),
        "lacks 1 tensors, for example norm.weight",
    ),
    "integers": (
        with_tensors(lambda tensors: tensors.update({"norm.weight": torch.zeros(16).int()})),
        "has weights of the type I32",
    ),
    "cut weights": (cut, "is truncated or damaged"),
}


@pytest.mark.parametrize("case", WRONG_PLAIN)
def test_plain_weights_that_are_wrong_are_refused(copy: Callable[[str], Path], case: str) -> None:
    folder = copy("plain")
    damage, words = WRONG_PLAIN[case]
    damage(folder)
    refuse(folder, words)


# -- both ways


@pytest.mark.parametrize("name", ["mixtral", "qwen3", "glm4"])
def test_a_config_says_all_that_a_blueprint_does(written: Path, name: str) -> None:
    from makemoe.exchange.blueprint import blueprint_of
    from makemoe.exchange.config import Config

    path = written / name / "config.json"
    (found,) = (
        one.found(Config(path, read_json(path)))
        for one in KNOWN
        if one.name in read_json(path)["architectures"]
    )
    assert found.odd == []
    assert (found.blueprint, []) == blueprint_of(model_of(PARTS[name]))


ARRANGEMENTS = [
    (of_each_expert("w", ["a", "b", "c"], 5, 7), (3, 5, 7)),
    (as_one_in("w", "a", 3, 5, 7), (3, 5, 7)),
    (as_one_out("w", "a", 3, 5, 7), (3, 7, 5)),
    (queries_keys_values("w", "qkv", 6, 3, 3), (18, 6)),
]


@pytest.mark.parametrize(("weight", "shape"), ARRANGEMENTS)
def test_a_weight_that_is_taken_apart_has_the_shapes_it_says_and_comes_together_again(
    weight: Any, shape: tuple[int, ...]
) -> None:
    whole = torch.randn(shape)
    parts = weight.take_apart(whole)
    assert [tuple(part.shape) for part in parts] == list(weight.tensors.values())
    assert torch.equal(weight.put_together(parts), whole)


def test_shared_keys_and_values_are_repeated_for_neighbouring_heads() -> None:
    weight = queries_keys_values("w", ["q", "k", "v"], 8, 4, 2)
    parts = [torch.randn(shape) for shape in weight.tensors.values()]
    q, k, v = weight.put_together(parts).view(3, 4, 2, 8)
    assert torch.equal(q.flatten(0, 1), parts[0])
    for whole, part in ((k, parts[1]), (v, parts[2])):
        for head in range(4):
            assert torch.equal(whole[head], part.view(2, 2, 8)[head // 2])
