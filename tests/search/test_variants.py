import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from makemoe.errors import UsageError
from makemoe.search.variants import (
    Vary,
    combinations,
    folder_name,
    read_vary,
    split,
    words_of,
)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("4,8,16", ("4", "8", "16")),
        ("[0,1],[2]", ("[0,1]", "[2]")),
        ("TopKRouter, makemoe.model.router.NoisyTopKRouter", None),
        ("'a,b',c", ("a,b", "c")),
        ("'4','a: b',\"[\"", ("'4'", "'a: b'", '"["')),
        ("{class_path: X, init_args: {a: [1, 2]}},null", None),
    ],
)
def test_values_are_split_as_yaml_splits_them_without_needless_quotes(
    text: str, values: tuple[str, ...] | None
) -> None:
    found = read_vary(f"model.key={text}")
    assert found.key == "model.key"
    if values is not None:
        assert found.values == values
    assert [yaml.safe_load(value) for value in found.values] == yaml.safe_load(f"[{text}]")


@pytest.mark.parametrize("text", ["=,b", "2024-13-45,b", "!foo a,b", "<<,b", "!!int x,b"])
def test_what_yaml_cannot_build_is_left_to_the_command_line(text: str) -> None:
    assert ",".join(split(text) or ()) == text


@given(st.text("ab4.,[]{}'\": #-\n", max_size=12))
def test_what_is_split_means_what_the_list_means(text: str) -> None:
    found = split(text)
    if found is not None:
        assert [yaml.safe_load(value) for value in found] == yaml.safe_load(f"[{text}]")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model.num_experts", "expected KEY=VALUE"),
        ("=4", "expected KEY=VALUE"),
        ("model.num_experts=", "not a list"),
        ("model.num_experts=4,,8", "not a list"),
        ("model.num_experts=4,", "not a list"),
        ("model.num_experts=4],[8", "not a list"),
        ("model.num_experts=-", "not a list"),
        ("model.num_experts=4,4", "the value 4 is given twice"),
        ("seed=1,2", "--seeds N"),
        ("trainer.max_steps=10,20", "equal tokens"),
        ("run.name=a,b", "folder of its own"),
    ],
)
def test_a_wrong_variation_is_told(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_vary(text)


def test_every_combination_has_a_short_name_of_its_own() -> None:
    varied = [
        read_vary("model.num_experts=4,8"),
        read_vary("model.router=makemoe.model.router.TopKRouter,NoisyTopKRouter"),
    ]
    choices = combinations(varied)
    assert [choice.name for choice in choices] == [
        "num_experts=4, router=TopKRouter",
        "num_experts=4, router=NoisyTopKRouter",
        "num_experts=8, router=TopKRouter",
        "num_experts=8, router=NoisyTopKRouter",
    ]
    assert choices[0].values == (
        ("model.num_experts", "4"),
        ("model.router", "makemoe.model.router.TopKRouter"),
    )


def test_names_are_as_long_as_it_takes_to_tell_them_apart() -> None:
    keys = ("model.optimizer.init_args.lr", "model.router.lr")
    one = combinations([Vary(keys[0], ("1",)), Vary(keys[1], ("a.X", "b.X"))])
    assert [choice.name for choice in one] == [
        "optimizer.lr=1, router.lr=a.X",
        "optimizer.lr=1, router.lr=b.X",
    ]
    numbers = combinations([Vary("model.dropout", ("0.1", "0.2"))])
    assert [choice.name for choice in numbers] == ["dropout=0.1", "dropout=0.2"]


def test_classes_with_arguments_and_files_have_short_names() -> None:
    gated = "{class_path: a.b.Gated, init_args: {hidden: 48, norm: c.RMSNorm}}"
    values = (gated, "[{class_path: d.SwitchLoss}]", "runs/a.txt", "0.1", "null", "[0, 1]")
    names = [choice.name for choice in combinations([Vary("model.x", values)])]
    assert names == [
        "x=Gated(hidden=48, norm=RMSNorm)",
        "x=[SwitchLoss]",
        *("x=a.txt", "x=0.1", "x=null", "x=[0, 1]"),
    ]
    same = combinations([Vary("data.corpus", ("a/text.txt", "b/text.txt"))])
    assert [choice.name for choice in same] == ["corpus=a/text.txt", "corpus=b/text.txt"]


def test_without_variations_there_is_one_nameless_variant() -> None:
    assert combinations([]) == [("", ())]


def test_an_option_is_varied_once() -> None:
    with pytest.raises(UsageError, match="a is given twice"):
        combinations([Vary("a", ("1",)), Vary("a", ("2",))])


@given(st.lists(st.text(max_size=150), unique=True, min_size=2, max_size=2))
def test_folders_are_plain_and_distinct(names: list[str]) -> None:
    one, other = map(folder_name, names)
    if ", " not in "".join(names):
        assert one != other
    for folder in (one, other):
        assert folder == "" or not folder.startswith((".", "-"))
        assert folder.isascii()
        assert not set(folder) & set("/\\ \0'\"*?[]()")
    assert folder_name("num_experts=4, router=TopKRouter") == "num_experts=4,router=TopKRouter"


def test_varied_options_follow_the_users_own_and_varied_files_precede_them() -> None:
    [choice] = combinations([Vary("model.top_k", ("1",)), Vary("config", ("b.yaml",))])
    words = ["--config", "a.yaml", "--model.dropout", "0.1"]
    assert words_of(choice, words) == [
        *("--config", "a.yaml", "--config=b.yaml"),
        *("--model.dropout", "0.1", "--model.top_k=1"),
    ]
