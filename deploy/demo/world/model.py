"""The model of the demo: a small Qwen2.5-VL, and a forward pass that shares a picture among its questions."""

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from model_families import Shape, qwen25_vl_config

SHAPE = Shape(192, 384, 6, 6, 2, vision_hidden=128, vision_depth=3)
PATCH, MERGE, FRAMES = 14, 2, 2
#: As in the image processor.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@dataclass(slots=True)
class Batch:
    """Rows of tokens: each a medium, then questions about it that do not see each other."""

    #: RGB bytes: (pictures, height, width, 3) and (videos, frames, height, width, 3).
    pictures: Tensor
    videos: Tensor
    #: The rows that hold the pictures, then those that hold the videos.
    order: Tensor
    #: (rows, length)
    tokens: Tensor
    #: (3, rows, length): time, height and width.
    positions: Tensor
    #: Number of each token's question; 0 for the medium and what is before it, -1 for padding.
    segments: Tensor
    #: Weight of the prediction made at each token, and the task it is counted under; 0 where none is learned.
    weights: Tensor
    tasks: Tensor

    def to(self, device: torch.device) -> Self:
        return type(self)(*(getattr(self, each.name).to(device) for each in fields(self)))


def build_model(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """Build the model with random weights; each picture is looked at as a whole, not in windows."""
    config = qwen25_vl_config(tokenizer, SHAPE)
    config.dtype = config.text_config.dtype = config.vision_config.dtype = "float32"
    config.vision_config.fullatt_block_indexes = list(range(SHAPE.vision_depth))
    # so that a video's time positions stay below its height, where all implementations count alike
    config.vision_config.tokens_per_second = 1
    return Qwen2_5_VLForConditionalGeneration(config)


def cut_patches(frames: Tensor) -> Tensor:
    """Cut bytes (media, frames, height, width, 3) into (media, patches, values), as the processors do."""
    media, count, height, width, _ = frames.shape
    mean, deviation = frames.new_tensor([_MEAN, _DEVIATION], dtype=torch.float32)
    values = (frames / 255 - mean) / deviation
    rows, columns = height // PATCH // MERGE, width // PATCH // MERGE
    grid = values.reshape(media, count // FRAMES, FRAMES, rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
    patches = grid.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)
    return patches.reshape(media, -1, 3 * FRAMES * PATCH * PATCH)


def see(visual: Any, patches: Tensor, side: int) -> Tensor:
    """Encode (pictures, patches, values) of square pictures; equal to calling `visual`, but in one go."""
    length = side // PATCH
    row, column = np.indices((length, length)).reshape(2, length // MERGE, MERGE, length // MERGE, MERGE)
    places = np.stack([each.transpose(0, 2, 1, 3).reshape(-1) for each in (row, column)], axis=1)
    embed = visual.patch_embed.proj.weight
    hidden = patches @ embed.view(len(embed), -1).T
    angles = visual.rotary_pos_emb(hidden, torch.from_numpy(places).to(hidden.device))
    for block in visual.blocks:
        attention = block.attn
        shape = (*hidden.shape[:2], 3, attention.num_heads, -1)
        query, key, value = attention.qkv(block.norm1(hidden)).view(shape).unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, *angles)
        heads = [each.transpose(1, 2) for each in (query, key, value)]
        mixed = scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        hidden = hidden + attention.proj(mixed)
        hidden = hidden + block.mlp(block.norm2(hidden))
    return visual.merger(hidden).view(len(patches), length * length // MERGE**2, -1)


def predict(model: Qwen2_5_VLForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits at the tokens that have a weight, row by row, and the right next tokens there."""
    text = model.model.language_model
    media = [
        _see_all(model.model.visual, frames)
        for frames in (batch.pictures[:, None].repeat_interleave(FRAMES, 1), batch.videos)
        if len(frames)
    ]
    embeddings = text.embed_tokens(batch.tokens)
    config = model.config
    is_media = (batch.tokens == config.image_token_id) | (batch.tokens == config.video_token_id)
    seen = [each for group in media for each in group]
    by_row = torch.cat([seen[place] for place in batch.order.argsort().tolist()])
    embeddings = embeddings.masked_scatter(is_media[..., None], by_row)
    hidden = text(
        inputs_embeds=embeddings,
        position_ids=batch.positions,
        attention_mask={"full_attention": _visible(batch.segments)},
        use_cache=False,
    ).last_hidden_state
    chosen = batch.weights > 0
    following = batch.tokens.roll(-1, dims=1)
    return model.lm_head(hidden[chosen]), following[chosen]


def _see_all(visual: Any, frames: Tensor) -> Tensor:
    """Encode (media, frames, side, side, 3), two frames at a time: (media, tokens, width)."""
    media, count, side = frames.shape[:3]
    patches = cut_patches(frames).reshape(media * count // FRAMES, -1, 3 * FRAMES * PATCH * PATCH)
    tokens: Tensor = see(visual, patches, side)
    return tokens.reshape(media, -1, tokens.shape[-1])


def _visible(segments: Tensor) -> Tensor:
    """Let each token see what is before it in its own question and in the part that all share."""
    own, seen = segments[:, None, :, None], segments[:, None, None, :]
    length = segments.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    return ((seen == 0) | (seen == own)) & before
