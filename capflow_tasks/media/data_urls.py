"""Encodes pictures and videos as parts of a chat message, for a server that is asked over HTTP."""

from base64 import b64encode
from dataclasses import dataclass, replace
from io import BytesIO

from PIL import Image

from capflow_tasks.media.budget import FRAMES_PER_TOKEN, MediaBudget
from capflow_tasks.media.loader import Media
from capflow_tasks.media.pictures import count_tokens, load_image
from capflow_tasks.media.video import DecodedVideo, VideoReader, load_video
from capflow_tasks.observe import metrics
from capflow_tasks.records import JsonObject, MediaRef, Modality, clock

#: JPEG's quality, of 100, with whole colours: small print stays sharp at a fraction of a PNG's bytes.
_QUALITY = 95


@dataclass(frozen=True, slots=True)
class Parts:
    """One picture or video as a server gets it."""

    #: Parts of a chat message's content.
    content: list[JsonObject]
    #: What vLLM's server must know of a video's frames, its `media_io_kwargs`.
    io_kwargs: JsonObject | None = None


def encode_media(
    ref: MediaRef, budget: MediaBudget, reader: VideoReader, key: str, *, splits_videos: bool
) -> Media:
    """Read and encode a picture or video as `Parts`, resized to the budget.

    A split video is pictures that each follow their time; else it is what vLLM's server takes for a video.
    """
    with metrics.MEDIA_SECONDS.labels(ref.kind).time():
        if ref.kind is Modality.IMAGE:
            image = load_image(ref.path, budget)
            return _media(ref, Parts([_picture(image)]), count_tokens(image.size, budget), key)
        if splits_videos:
            # pictures share no tokens, as the frames of a video do
            total = max(budget.total_pixels // FRAMES_PER_TOKEN, budget.frame_pixels_floor)
            budget = replace(budget, total_pixels=total)
        video = load_video(ref.path, budget, ref.span, reader)
        count, height, width, _ = video.frames.shape
        tokens = count_tokens((width, height), budget, count * FRAMES_PER_TOKEN if splits_videos else count)
        return _media(ref, _pictures(video) if splits_videos else _jpeg_sequence(video), tokens, key)


def _media(ref: MediaRef, parts: Parts, tokens: int, key: str) -> Media:
    return Media(ref.kind, tokens, parts, sum(len(str(part)) for part in parts.content), key)


def _pictures(video: DecodedVideo) -> Parts:
    content: list[JsonObject] = []
    for seconds, frame in zip(video.timestamps, video.frames, strict=True):
        time = {"type": "text", "text": f"Frame at {clock(seconds)}:"}
        content += [time, _picture(Image.fromarray(frame))]
    return Parts(content)


def _jpeg_sequence(video: DecodedVideo) -> Parts:
    frames = ",".join(_jpeg(Image.fromarray(frame)) for frame in video.frames)
    _, facts = video.for_vllm()
    del facts["video_backend"]
    return Parts(
        [{"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}}],
        # -1 for all that are sent
        {"video": {"num_frames": -1, **facts}},
    )


def _picture(image: Image.Image) -> JsonObject:
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{_jpeg(image)}"}}


def _jpeg(image: Image.Image) -> str:
    """Return the picture as JPEG in base64."""
    data = BytesIO()
    image.save(data, "JPEG", quality=_QUALITY, subsampling=0)
    return b64encode(data.getvalue()).decode()
