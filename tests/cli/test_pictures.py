from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from commandline import TINY, Ended, little_space, script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import makemoe.pictures
from makemoe.checkpoint.inference import load_for_inference
from makemoe.data.corpus import load_text
from makemoe.tracking import pictures

Call = Callable[..., Ended]
DRAWN = ("fit", *TINY, "--run.pictures=true", "--run.name=mine")
NAMES = ["characters", "coactivation", "curves", "load"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[Any, ...]]]:
    """What the pictures are drawn of, newest last."""
    seen: dict[str, list[tuple[Any, ...]]] = {}
    for name in ("draw_curves", "draw_load", "draw_pairs", "draw_symbols"):
        draw = getattr(makemoe.pictures, name)

        def spy(*given: Any, name: str = name, draw: Callable[..., Any] = draw) -> Any:
            seen.setdefault(name, []).append(given)
            return draw(*given)

        monkeypatch.setattr(makemoe.pictures, name, spy)
    return seen


def test_a_run_draws_how_its_model_routes_the_validation_text(
    makemoe: Call, drawn: dict[str, list[tuple[Any, ...]]]
) -> None:
    ended = makemoe(*DRAWN, "--data.eval_train_split=true")
    assert ended.status == 0, ended.err
    run = Path("checkpoints/mine")
    assert sorted(path.name for path in (run / "pictures").iterdir()) == [
        f"{name}.png" for name in NAMES
    ]
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    assert sorted(events.Tags()["images"]) == [f"pictures/{name}" for name in NAMES]
    for name in NAMES:
        shown = events.Images(f"pictures/{name}")
        assert [image.step for image in shown] == [10, 20]
        picture = matplotlib.image.imread(run / "pictures" / f"{name}.png")
        assert picture.shape[:2] == (shown[1].height, shown[1].width)

    model, tokenizer = load_for_inference(run / "last.ckpt")
    text = load_text("sample")
    ids = torch.tensor(tokenizer.encode(text[len(text) * 9 // 10 :]).tolist())
    by_symbol, pairs = np.zeros((1, tokenizer.vocab_size, 3), int), np.zeros((1, 3, 3), int)
    for start in range(0, len(ids) - 1, 16):
        inputs = ids[start : min(start + 16, len(ids) - 1)]
        with torch.inference_mode():
            (routing,) = model(inputs[None])[1]
        chosen_NK = routing.experts_NK.numpy()
        np.add.at(by_symbol[0], (inputs.numpy()[:, None], chosen_NK), 1)
        np.add.at(pairs[0], (chosen_NK[:, :, None], chosen_NK[:, None, :]), 1)

    *_, (counts, symbols, top_k, step, layers) = drawn["draw_symbols"]
    assert (top_k, step, layers) == (2, 20, [0])
    assert "".join(symbols) == tokenizer.vocabulary  # type: ignore[attr-defined]
    # A tie within a rounding error may be decided otherwise in a batch of another size.
    assert abs(counts - by_symbol).sum() <= 4
    assert counts.sum() == 2 * (len(ids) - 1)
    assert abs(drawn["draw_pairs"][-1][0] - pairs).sum() <= 8
    steps_S, load_SLE, *_ = drawn["draw_load"][-1]
    assert steps_S.tolist() == [10, 20]
    np.testing.assert_allclose(load_SLE[-1], counts.sum(1) / counts.sum(), atol=1e-6)
    columns, _ = drawn["draw_curves"][-1]
    assert columns["step"].tolist() == [5, 10, 15, 20]
    assert np.isnan(columns["val_loss"]).tolist() == [True, False, True, False]


def test_pictures_of_a_resumed_run_go_on(
    makemoe: Call, copied: Path, drawn: dict[str, list[tuple[Any, ...]]]
) -> None:
    ended = makemoe(
        *("fit", "--ckpt_path=last", "--trainer.max_steps=30", "--run.pictures=true"),
        *("--data.corpus=sample",),
    )
    assert ended.status == 0, ended.err
    assert (copied / "pictures/load.png").exists()
    ((steps_S, load_SLE, _, step, _),) = drawn["draw_load"]
    assert (steps_S.tolist(), step) == ([10, 20, 30], 30)
    assert load_SLE.shape == (3, 1, 3)


def test_pictures_can_be_left_out(trained: Path) -> None:
    assert not (trained / "checkpoints/tiny/pictures").exists()


def test_one_expert_a_token_and_no_history(makemoe: Call) -> None:
    ended = makemoe(*DRAWN, "--model.top_k=1", "--trainer.logger=false")
    assert ended.status == 0, ended.err
    assert [path.name for path in Path("checkpoints/mine/pictures").iterdir()] == ["characters.png"]


def test_a_vocabulary_too_large_to_draw_is_told(
    makemoe: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MOST_COUNTS", 100)
    ended = makemoe(*DRAWN)
    assert ended.status == 0, ended.err
    assert ended.err.count("is too large and is not drawn") == 1
    assert "symbols by 3 experts" in ended.err
    assert not Path("checkpoints/mine/pictures/characters.png").exists()
    assert Path("checkpoints/mine/pictures/coactivation.png").exists()


def test_a_full_disk_while_drawing_does_not_stop_the_run(tmp_path: Path) -> None:
    alone = ("--trainer.logger=false", "--trainer.enable_checkpointing=false")
    ended = script(*DRAWN, *alone, cwd=tmp_path, preexec_fn=little_space)
    assert ended.status == 0, ended.err
    (line,) = [line for line in ended.err.splitlines() if "cannot write" in line]
    assert "checkpoints/mine/pictures" in line
    assert "File too large" in line
    run = tmp_path / "checkpoints/mine"
    assert (run / "samples.txt").read_text().count("==== step") == 2
    assert [path.name for path in (run / "pictures").iterdir()] == ["coactivation.png"]  # small


def test_pictures_go_on_when_tensorboard_breaks(tmp_path: Path) -> None:
    ended = script(
        *(*DRAWN, "--trainer.val_check_interval=5", "--trainer.enable_checkpointing=false"),
        cwd=tmp_path,
        preexec_fn=partial(little_space, 150_000),  # for a picture, not for all in one file
    )
    assert ended.status == 0, ended.err
    (told,) = [line for line in ended.err.splitlines() if "training continues" in line]
    assert told.startswith("makemoe: TensorBoard failed, training continues without it: ")
    run = tmp_path / "checkpoints/mine"
    assert sorted(p.name for p in (run / "pictures").iterdir()) == [f"{n}.png" for n in NAMES]
    assert next(run.glob("events.*")).stat().st_size == 150_000


def test_a_picture_that_cannot_be_written_is_the_only_one_that_is_not(makemoe: Call) -> None:
    in_the_way = Path("checkpoints/mine/pictures/curves.png/a file")
    ended = makemoe(*DRAWN, "--trainer.max_steps=10")
    assert ended.status == 0, ended.err
    Path("checkpoints/mine/pictures/curves.png").unlink()
    in_the_way.parent.mkdir()
    in_the_way.touch()
    ended = makemoe("fit", "--ckpt_path=last", "--trainer.max_steps=30", "--run.pictures=true")
    assert ended.status == 0, ended.err
    (told,) = [line for line in ended.err.splitlines() if "training continues" in line]
    assert "cannot write checkpoints/mine/pictures/curves.png: Is a directory" in told
    events = EventAccumulator("checkpoints/mine", size_guidance={"images": 0}).Reload()
    for name in NAMES:
        assert [image.step for image in events.Images(f"pictures/{name}")] == [10, 20, 30]
