"""What is read from the checkpoints of several families; no engine is started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from capflow_tasks.errors import MediaUnsupported
from capflow_tasks.media.budget import FrameSampling, MediaForm, PixelRange
from capflow_tasks.records import MediaRef, Modality
from tests.checkpoints import tiny_checkpoint

pytestmark = pytest.mark.e2e

BOTH = {Modality.IMAGE, Modality.VIDEO}
QWEN25 = MediaForm(28, PixelRange(3136, 1_003_520), PixelRange(3136, 602_112))
QWEN3 = MediaForm(
    32, PixelRange(65_536, 16_777_216), PixelRange(2048, 12_582_912), 12_582_912, FrameSampling.LINSPACE
)
OWN_SIZE = MediaForm(token_side=None)


@pytest.mark.parametrize(
    ("family", "sees", "form"),
    [
        ("qwen2.5-vl", BOTH, QWEN25),
        ("qwen3-vl", BOTH, QWEN3),
        ("qwen3.5", BOTH, QWEN3),
        ("gemma3", {Modality.IMAGE}, OWN_SIZE),
        ("qwen3", set(), OWN_SIZE),
    ],
)
def test_the_files_of_a_checkpoint_say_what_it_sees_and_how(
    family: str, sees: set[Modality], form: MediaForm
) -> None:
    from capflow_tasks.engine.profile import read_profile

    profile = read_profile(str(tiny_checkpoint(family)), {})

    assert profile.sees == sees
    assert profile.form == form


def test_a_text_model_is_shown_nothing_and_a_picture_model_refuses_a_video() -> None:
    from capflow_tasks.engine.profile import ModelProfile

    media = (MediaRef(Modality.IMAGE, "a.png"), MediaRef(Modality.VIDEO, "b.mp4"))

    assert ModelProfile(None, frozenset(), OWN_SIZE).visible(media) == ()
    assert ModelProfile(None, frozenset(BOTH), QWEN3).visible(media) == media
    with pytest.raises(MediaUnsupported, match=r"b\.mp4: the model takes no video"):
        ModelProfile(None, frozenset({Modality.IMAGE}), OWN_SIZE).visible(media)


def test_the_processors_own_code_runs_where_the_engines_may(tmp_path: Path) -> None:
    from capflow_tasks.engine.profile import read_profile

    model = tmp_path / "remote"
    shutil.copytree(tiny_checkpoint(), model)
    (model / "own_processor.py").write_text(
        "from transformers import Qwen2_5_VLProcessor\nclass OwnProcessor(Qwen2_5_VLProcessor): pass\n"
    )
    file = model / "processor_config.json"
    said = json.loads(file.read_text()) | {
        "processor_class": "OwnProcessor",
        "auto_map": {"AutoProcessor": "own_processor.OwnProcessor"},
    }
    file.write_text(json.dumps(said))
    with pytest.raises(ValueError, match="trust_remote_code"):
        read_profile(str(model), {"trust_remote_code": False})

    profile = read_profile(str(model), {"trust_remote_code": True})

    assert type(profile.processor).__name__ == "OwnProcessor"
    assert profile.form == QWEN25
