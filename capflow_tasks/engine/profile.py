"""What is known of a checkpoint, read once from its files and processor. Names no model family."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoProcessor
from transformers.video_utils import VideoMetadata

from capflow_tasks.errors import MediaUnsupported
from capflow_tasks.media.budget import FRAMES_PER_TOKEN, FrameSampling, MediaForm, PixelRange
from capflow_tasks.records import MediaRef, Modality

#: The arguments of vLLM's engine that say which files are the model's, and whether their code may run.
_LOADING = ("revision", "trust_remote_code")


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """How one model takes its prompts. Users change `CAPFLOW_MODEL` and nothing else."""

    #: transformers' processor; for a text-only model its tokenizer.
    processor: Any
    #: The kinds of media that the model takes; none for a text-only model.
    sees: frozenset[Modality]
    #: How it takes them.
    form: MediaForm

    def visible(self, media: tuple[MediaRef, ...]) -> tuple[MediaRef, ...]:
        """Return what the model is shown: nothing if it reads only text. Raises MediaUnsupported."""
        if not self.sees:
            return ()
        for ref in media:
            if ref.kind not in self.sees:
                raise MediaUnsupported(
                    f"{ref.path}: the model takes no {ref.kind}; set CAPFLOW_MODEL, or CAPFLOW_QUEUE_MODELS "
                    "for this stage's queue, to one that does"
                )
        return media


def read_profile(model: str, engine_args: Mapping[str, Any]) -> ModelProfile:
    """Read the profile of a model folder or hub name; `engine_args` are those of vLLM.

    Raises OSError or ValueError, as transformers does, for files that are missing or cannot be read.
    """
    options = {name: engine_args[name] for name in _LOADING if name in engine_args}
    processor = AutoProcessor.from_pretrained(model, **options)
    config = AutoConfig.from_pretrained(model, **options)
    return ModelProfile(processor, _kinds_seen(processor, config), _media_form(processor))


def _kinds_seen(processor: Any, config: Any) -> frozenset[Modality]:
    readers = {"image_processor": Modality.IMAGE, "video_processor": Modality.VIDEO}
    found = {kind for name, kind in readers.items() if getattr(processor, name, None) is not None}
    if not found and hasattr(config, "vision_config"):
        # its processor is vLLM's own: vLLM refuses what the model does not take
        found = set(Modality)
    return frozenset(found)


def _media_form(processor: Any) -> MediaForm:
    pictures, videos = (getattr(processor, name, None) for name in ("image_processor", "video_processor"))
    side, picture_pixels = _token_side(pictures), _pixel_range(pictures)
    if side is None or picture_pixels is None:
        return MediaForm(token_side=None, sampling=_sampling(videos))
    frame_pixels, video_pixels = _pixel_range(videos) or picture_pixels, None
    if videos is not None and _limits_whole_videos(videos):
        video_pixels = frame_pixels.most // FRAMES_PER_TOKEN
        frame_pixels = PixelRange(frame_pixels.least // FRAMES_PER_TOKEN, video_pixels)
    return MediaForm(side, picture_pixels, frame_pixels, video_pixels, _sampling(videos))


def _token_side(processor: Any) -> int | None:
    """Return the pixels per side of a token, for processors that cut pictures of any size into patches."""
    patch, merged = (getattr(processor, name, None) for name in ("patch_size", "merge_size"))
    return patch * merged if isinstance(patch, int) and isinstance(merged, int) else None


def _pixel_range(processor: Any) -> PixelRange | None:
    """Return the sizes that the processor leaves alone; for patches, "edge" means pixels in all."""
    size = getattr(processor, "size", None) or {}
    least, most = (size.get(name) for name in ("shortest_edge", "longest_edge"))
    return PixelRange(least, most) if least and most else None


def _limits_whole_videos(processor: Any) -> bool:
    """Return whether the size limits count the pixels of all frames: then more frames are made smaller."""
    side = int(processor.size["longest_edge"] ** 0.5)
    few, many = (processor.get_num_of_video_patches(count, side, side, {}) for count in (2, 256))
    return bool(many < few * 128)


def _sampling(processor: Any) -> FrameSampling:
    """Ask the processor for 4 of 100 frames: the last is 99 or 75."""
    metadata = VideoMetadata(total_num_frames=100, fps=25.0, duration=4.0)
    try:
        last = int(processor.sample_frames(metadata, num_frames=4)[-1])
    except (AttributeError, TypeError, ValueError, NotImplementedError):
        return FrameSampling.EVEN  # no video, or sampled by a rule of its own
    return FrameSampling.LINSPACE if last == 99 else FrameSampling.EVEN
