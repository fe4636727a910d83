"""The decoder of the optional package torchcodec, for m4a, wma, webm and what else libsndfile does not read."""

import re

import numpy as np
import soundfile

# Seconds that torchcodec decodes at a time, and at least near damage, where they become fewer.
CODEC_STEP, MIN_CODEC_STEP = 60.0, 0.2

# Seconds by which a time stamp may be off that its container rounds to milliseconds.
CLOCK_ERROR = 0.002

# Frames passed over at a time.
SKIPPED_READ = 1 << 20


class TorchcodecDecoder:
    """Reads with torchcodec. `frames` is what the header states, 0 where it states nothing.

    The stream is decoded once, from its beginning on, in whole codec frames: torchcodec's public ranges are cut by
    time stamps, which many containers round to milliseconds, and each that begins within a codec frame decodes all
    that is before it anew.
    """

    def __init__(self, source: str | bytes):
        self._source = source
        self._rewind()
        metadata = self._decoder.metadata
        self.rate, self.channels = int(metadata.sample_rate), metadata.num_channels
        self.format, self.note = str(metadata.codec).upper(), None
        own, container, streams = self._stated_seconds()
        # A container counts from 0, and to the end of its longest stream.
        self._stated_end = own + self._begin if own else container or np.inf
        self.frames = round((own or (max(0.0, container - self._begin) if streams == 1 else 0.0)) * self.rate)

    def seek(self, frame: int) -> None:
        if frame < self._frame:
            self._rewind()
        while self._frame < frame and len(self.read(min(frame - self._frame, SKIPPED_READ))):
            pass

    def read(self, num_frames: int) -> np.ndarray:
        """The next at most `num_frames` frames, float32 `[n, channels]`; `n` is 0 at the end."""
        parts, missing = [], num_frames
        while missing > 0 and (len(self._held) or not self._ended):
            if len(self._held) == 0:
                self._held = self._decode_step()
            parts.append(self._held[:missing])
            self._held = self._held[missing:]
            missing -= len(parts[-1])
        block = np.concatenate(parts) if parts else np.zeros((0, self.channels), np.float32)
        self._frame += len(block)
        return block

    def close(self) -> None:
        pass

    def _rewind(self) -> None:
        self._open()
        # Recordings of broadcasts begin anywhere; what stands before 0 is no audio.
        self._begin = max(0.0, self._decoder.metadata.begin_stream_seconds_from_header or 0.0)
        self._clock, self._end, self._step = max(0.0, self._begin - 1), 0.0, CODEC_STEP
        self._margin, self._frame, self._ended = CLOCK_ERROR, 0, False
        self._held = np.zeros((0, 0), np.float32)

    def _open(self) -> None:
        # A new one instead of seeking back: torchcodec would then not cut off the encoder's delay.
        from torchcodec.decoders import AudioDecoder

        self._decoder = AudioDecoder(self._source)

    def _stated_seconds(self) -> tuple[float, float, int]:
        """Length of the stream and of its container by the header, 0 where it states none; number of streams."""
        from torchcodec._core import get_container_metadata

        metadata = self._decoder.metadata
        if metadata.begin_stream_seconds_from_header is None:
            # Bare AAC, whose length FFmpeg guesses from its bit rate.
            return 0.0, 0.0, 1
        container = get_container_metadata(self._decoder._decoder)
        lengths = (metadata.duration_seconds_from_header, container.duration_seconds_from_header)
        return lengths[0] or 0.0, lengths[1] or 0.0, len(container.streams)

    def _decode_step(self) -> np.ndarray:
        """The samples that follow, about `CODEC_STEP` seconds or none: `[n, channels]`."""
        stop = self._clock + self._step
        try:
            for limit in (stop, stop, None):
                samples, first = self._decode(limit)
                if samples is not None or self._end > self._stated_end - 0.1:
                    break
                # A time that falls between two codec frames, or in a hole, lets torchcodec run to the end.
                self._open()
            if samples is not None and self._end and first - self._end > CLOCK_ERROR == self._margin:
                # A hole; or a codec frame was passed over since its container does not say how long it is.
                self._open()
                self._clock = self._end - CLOCK_ERROR
                again, time = self._decode(limit)
                if abs(time - self._end) <= CLOCK_ERROR:
                    samples, first, self._margin = again, time, -CLOCK_ERROR
        except RuntimeError as error:
            samples, self._ended = None, self._step <= MIN_CODEC_STEP
            if self._ended and self._end == 0:
                raise soundfile.SoundFileRuntimeError(one_line(error)) from error
            # A failed call returns nothing of what it decoded: once more from there, in shorter steps.
            self._open()
            self._step /= 20
            self.note = "what follows is damaged."
        else:
            self._ended = samples is None
        if samples is None:
            return np.zeros((0, self.channels), np.float32)
        # What was decoded before, or stands before time 0 as an encoder's delay does, is left out.
        repeated = 0
        if self._end - first > CLOCK_ERROR:
            repeated, self._margin = round((self._end - first) * self.rate), CLOCK_ERROR
        self._end = first + len(samples) / self.rate
        self._clock = max(self._end, stop) + self._margin
        return samples[repeated:]

    def _decode(self, stop: float | None) -> tuple[np.ndarray | None, float]:
        """The codec frames that end after the clock, up to that which holds `stop`: `[n, channels]`, first time."""
        # Not public; the versions that the extra allows have it.
        from torchcodec._core import get_frames_by_pts_in_range_audio

        try:
            samples, first = get_frames_by_pts_in_range_audio(
                self._decoder._decoder, start_seconds=self._clock, stop_seconds=stop
            )
        except RuntimeError as error:
            if "No audio frames were decoded" in str(error):
                return None, 0.0
            raise
        return samples.numpy().T, first.item()


def one_line(error: Exception) -> str:
    """The first line of a library's message, without the source's repr, which would hold addresses or whole files."""
    text = getattr(error, "error_string", None) or str(error)
    # torchcodec's begin with a function, and a file and line of its own source.
    text = re.sub(r"^\w+, \S+\.cpp:\d+, ", "", text)
    if "possibly a pipe" in text:
        return "Format not recognised"
    return " ".join(text.split("\n")[0].split())[:200].rstrip(".")
