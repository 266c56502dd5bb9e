"""The demo's model as it is trained answers as it does when served."""

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from world.lessons import Row, RowMaker, build_tokenizer, collate
from world.model import build_model, predict

#: Rows of the test, among them a video.
ROWS = 6


def test_a_packed_row_predicts_what_the_stock_model_predicts_for_each_question_alone() -> None:
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    model = build_model(tokenizer).eval()
    rows = [RowMaker(tokenizer, 0).make(number, 0.5) for number in range(ROWS)]
    assert {len(row.frames) for row in rows} == {1, 8}
    with torch.no_grad():
        packed, _ = predict(model, collate(rows))
        alone = [
            _predict_alone(model, row, number) for row in rows for number in sorted(set(row.segments) - {0})
        ]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-4, rtol=1e-4)


def _predict_alone(model: torch.nn.Module, row: Row, number: int) -> torch.Tensor:
    """Ask one question of a row with the stock processors and forward pass."""
    segments, weights = np.array(row.segments), torch.tensor(row.weights)
    places = np.flatnonzero((segments == 0) | (segments == number))
    tokens = torch.tensor(row.tokens)[places][None]
    if len(row.frames) == 1:
        media = Qwen2VLImageProcessor()(Image.fromarray(row.frames[0]), do_resize=False, return_tensors="pt")
        kinds = (tokens == model.config.image_token_id).int()
    else:
        media = Qwen2VLVideoProcessor()(
            [row.frames], do_resize=False, do_sample_frames=False, return_tensors="pt"
        )
        media["second_per_grid_ts"] = torch.ones(1)
        kinds = (tokens == model.config.video_token_id).int() * 2
    model.model.rope_deltas = None
    logits: torch.Tensor = model(input_ids=tokens, mm_token_type_ids=kinds, **media).logits[0]
    return logits[weights[places] > 0]
