"""Renderer of the synthetic corpus: a score becomes 16 kHz mono float32 audio, with numpy and one FFT filter per clip.

Each role is played into a stem by a voice whose program is redrawn for the clip. Stems are brought to equal loudness
and mixed. The mix passes through the nuisances of a recording (equaliser, room, noise floor) and leaves at a level
that does not depend on any label.
"""

import numpy as np
import scipy.fft

from music2vec_hf.synthetic.score import DRUM_KITS, TIMBRES, Score

SAMPLING_RATE = 16_000
NUM_HARMONICS = 48
HIGHEST_PARTIAL = 7_600.0  # Hz; nothing is synthesised above, so nothing aliases
TABLE_SIZE = 4096  # samples in one period of a wavetable
DURATION_STEP = 0.02  # s; notes are rendered once per clip for each (pitch, duration step, velocity step)
VELOCITY_STEPS = 8
BANDS = (slice(0, 2), slice(2, 6), slice(6, NUM_HARMONICS))  # harmonics 1-2, 3-6, 7 and up
BAND_VELOCITY = np.array([0.6, 1.2, 1.9])  # harder notes are louder and, above all, brighter


def render(score: Score, program_rng: np.random.Generator, mix_rng: np.random.Generator) -> np.ndarray:
    """Play a score: float32 samples `[N]` in (-1, 1), N = clip_seconds x 16,000 rounded.

    `program_rng` draws the sounds (timbre programs, drums, tuning), `mix_rng` the mix (stem levels, equaliser, room,
    noise floor, final level).
    """
    spec, num_samples = score.spec, round(score.spec.clip_seconds * SAMPLING_RATE)
    tuning_cents = program_rng.normal(0, 6)
    longest = max((note.seconds for note in score.notes), default=1.0) + 0.6
    stems = {role: np.zeros(num_samples, np.float32) for role in spec.instruments}
    voices = {
        role: Voice(TIMBRES[instrument], spec.controls["brightness"], tuning_cents, longest, program_rng)
        for role, instrument in spec.instruments.items()
    }
    for note in score.notes:
        _place(stems[note.role], voices[note.role].note(note.pitch, note.seconds, note.velocity), note.onset)
    if score.hits:
        stems["drums"] = np.zeros(num_samples, np.float32)
        # All sounds of the kit are drawn, used or not: the draw of one does not depend on the pattern.
        sounds = {name: _render_drum(sound, program_rng) for name, sound in DRUM_KITS[spec.kit].items()}
        for hit in score.hits:
            _place(stems["drums"], sounds[hit.sound] * np.float32(hit.velocity), hit.onset)
    return _record(_mix(list(stems.values()), mix_rng), mix_rng)


def silent_share(samples: np.ndarray, frame: int = 800, floor_db: float = -60.0) -> float:
    """Share of frames of 50 ms whose RMS lies under `floor_db` dBFS."""
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    return float(np.mean(np.mean(frames**2, axis=1) < 10 ** (floor_db / 10))) if len(frames) else 0.0


def _place(stem: np.ndarray, sound: np.ndarray, onset: float):
    start = round(onset * SAMPLING_RATE)
    first, stop = max(0, -start), min(len(sound), len(stem) - start)
    if stop > first:
        stem[start + first : start + stop] += sound[first:stop]


class Voice:
    """One instrument with a program of its own: every number of its timbre is redrawn around the table's value.

    `brightness` in [0, 1] tilts the spectrum by up to +-0.4 in the exponent of the harmonics, `tuning_cents` is the
    clip's deviation from 440 Hz, and envelopes are computed once for `longest` seconds, release included.
    """

    def __init__(self, timbre, brightness: float, tuning_cents: float, longest: float, rng):
        def vary(value, spread):
            return value * np.exp(spread * rng.standard_normal())

        self.timbre = timbre
        self.reference = 440.0 * 2 ** (tuning_cents / 1200)
        harmonics = np.arange(1, NUM_HARMONICS + 1)
        amplitudes = harmonics ** (-vary(timbre.rolloff, 0.08) + 0.8 * (brightness - 0.5))
        amplitudes[1::2] *= timbre.even
        self.amplitudes = amplitudes * np.exp(0.12 * rng.standard_normal(NUM_HARMONICS))
        self.formants = [(vary(hz, 0.06), db + rng.normal(0, 1), width) for hz, db, width in timbre.formants]
        self.phases = np.exp(2j * np.pi * rng.random(NUM_HARMONICS))
        time = np.arange(int(longest * SAMPLING_RATE) + 1) / SAMPLING_RATE
        # Vibrato sets in over a third of a second. It is kept as a bent time axis, shared by all pitches.
        depth, rate = np.log(2) / 1200 * vary(timbre.vibrato_cents, 0.25), rng.uniform(4.6, 6.4)
        sway = np.minimum(time / 0.35, 1) * np.sin(2 * np.pi * rate * time + 2 * np.pi * rng.random())
        self.time = time + depth / (2 * np.pi * rate) * sway
        decays = [vary(decay, 0.15) if decay < np.inf else np.inf for decay in timbre.decays]
        self.sustained = min(decays) == np.inf
        self.decays = np.stack([np.exp(-time / decay) for decay in decays]).astype(np.float32)
        attack = vary(timbre.attack, 0.2)
        self.attack = np.minimum(np.arange(1, int(attack * SAMPLING_RATE) + 2) / (attack * SAMPLING_RATE), 1) ** 0.7
        # The end of a note falls by 60 dB and reaches zero.
        place = np.linspace(0, 1, max(2, int(2 * vary(timbre.release, 0.2) * SAMPLING_RATE)))
        self.release = (np.exp(-6.9 * place) * (1 - place)).astype(np.float32)
        self.transient = vary(timbre.transient, 0.3) * _treble_noise(rng.uniform(0.006, 0.02), rng)
        self.breath = vary(timbre.breath, 0.3) * rng.standard_normal(len(time)).astype(np.float32)
        self.fm = None if timbre.fm is None else [vary(timbre.fm[1], 0.2), vary(timbre.fm[2], 0.2)]
        self.partials = [
            (ratio * (1 if ratio == 1 else np.exp(rng.normal(0, 0.015))), vary(amplitude, 0.2), vary(decay, 0.2))
            for ratio, amplitude, decay in timbre.partials
        ]
        self.partial_tilt = 0.8 * (brightness - 0.5)
        self.tables: dict[float, np.ndarray] = {}
        self.cache: dict[tuple[int, int, int], np.ndarray] = {}

    def note(self, pitch: int, seconds: float, velocity: float) -> np.ndarray:
        """The float32 samples of one note, release included; rendered once for each (pitch, duration, velocity)."""
        key = pitch, max(1, round(seconds / DURATION_STEP)), max(1, round(velocity * VELOCITY_STEPS))
        if key not in self.cache:
            self.cache[key] = self._render(*key)
        return self.cache[key]

    def _render(self, pitch: int, duration_steps: int, velocity_steps: int) -> np.ndarray:
        held, velocity = int(duration_steps * DURATION_STEP * SAMPLING_RATE), velocity_steps / VELOCITY_STEPS
        length = min(held + len(self.release), len(self.time))
        frequency = self.reference * 2 ** ((pitch - 69) / 12)
        gains = (velocity**BAND_VELOCITY).astype(np.float32)
        if self.fm is not None:
            sound = self._modulated(frequency, length, velocity)
        elif self.partials:
            sound = self._inharmonic(frequency, length, velocity)
        else:
            sound = self._harmonic(frequency, length, gains)
        if self.timbre.breath:
            sound += gains[0] * self.breath[:length]
        ramp = min(len(self.attack), length)
        sound[:ramp] *= self.attack[:ramp]
        if self.timbre.transient:
            burst = min(len(self.transient), length)
            sound[:burst] += gains[1] * self.transient[:burst]
        sound[held:] *= self.release[: length - held]
        return sound

    def _harmonic(self, frequency: float, length: int, gains: np.ndarray) -> np.ndarray:
        tables = self._tables(frequency)
        index = (self.time[:length] * (frequency * TABLE_SIZE)).astype(np.int32) & (TABLE_SIZE - 1)
        if self.sustained:
            return (gains @ tables)[index]
        sound = np.zeros(length, np.float32)
        for gain, table, decay in zip(gains, tables, self.decays, strict=True):
            sound += (gain * table)[index] * decay[:length]
        return sound

    def _tables(self, frequency: float) -> np.ndarray:
        """One period of the tone in three bands of harmonics, float32 `[3, TABLE_SIZE]`."""
        if frequency not in self.tables:
            numbers = np.arange(1, NUM_HARMONICS + 1)
            hz = frequency * numbers
            decibels = sum(db * np.exp(-((np.log2(hz / centre) / width) ** 2)) for centre, db, width in self.formants)
            amplitudes = self.amplitudes * 10 ** (decibels / 20) * (hz < HIGHEST_PARTIAL)
            spectrum = np.zeros((len(BANDS), TABLE_SIZE // 2 + 1), np.complex64)
            for band, harmonics in enumerate(BANDS):
                spectrum[band, numbers[harmonics]] = (amplitudes * self.phases)[harmonics]
            self.tables[frequency] = scipy.fft.irfft(spectrum * np.float32(TABLE_SIZE / 2)).astype(np.float32)
        return self.tables[frequency]

    def _modulated(self, frequency: float, length: int, velocity: float) -> np.ndarray:
        (ratio, _, _), (index, index_decay) = self.timbre.fm, self.fm
        phase = ((self.time[:length] * frequency) % 1.0).astype(np.float32) * np.float32(2 * np.pi)
        depth = np.exp(-self.time[:length] / index_decay).astype(np.float32)
        depth *= np.float32(index * (0.3 + 1.4 * velocity) * 2**self.partial_tilt * min(1.0, 800 / frequency))
        tone = np.sin(phase + depth * np.sin(np.float32(ratio) * phase))
        return tone * self.decays[0, :length] * np.float32(velocity**0.6)

    def _inharmonic(self, frequency: float, length: int, velocity: float) -> np.ndarray:
        sound = np.zeros(length, np.float32)
        for ratio, amplitude, decay in self.partials:
            if ratio * frequency > HIGHEST_PARTIAL:
                continue
            # Beyond seven decay times a partial is inaudible: do not compute it.
            audible = min(length, int(7 * decay * SAMPLING_RATE))
            phase = (self.time[:audible] * (ratio * frequency)) % 1.0
            gain = amplitude * max(ratio, 1) ** self.partial_tilt * velocity ** (0.6 if ratio <= 1 else 1.3)
            level = np.float32(gain) * np.exp(-self.time[:audible].astype(np.float32) / np.float32(decay))
            sound[:audible] += np.sin(phase.astype(np.float32) * np.float32(2 * np.pi)) * level
        return sound


def _treble_noise(decay: float, rng: np.random.Generator) -> np.ndarray:
    """A short noise with more treble than bass: pick, key or bow."""
    time = np.arange(int(4 * decay * SAMPLING_RATE)) / SAMPLING_RATE
    noise = rng.standard_normal(len(time) + 1)
    return ((noise[1:] - 0.6 * noise[:-1]) * np.exp(-time / decay)).astype(np.float32)


def _render_drum(drum, rng: np.random.Generator) -> np.ndarray:
    pitch, tone_decay, noise_decay, noise_gain = np.exp([0.1, 0.25, 0.25, 0.3] * rng.standard_normal(4))
    tone_decay, noise_decay = tone_decay * drum.tone_decay, noise_decay * drum.noise_decay
    length = int((6 * max(tone_decay if drum.tone_gain else 0, noise_decay) + drum.attack) * SAMPLING_RATE)
    time = np.arange(length) / SAMPLING_RATE
    first, last = pitch * drum.tone[0], pitch * drum.tone[1]
    glide = 0.3 * tone_decay
    phase = last * time + (first - last) * glide * (1 - np.exp(-time / glide))
    sound = drum.tone_gain * np.sin(2 * np.pi * phase) * np.exp(-time / tone_decay)
    spectrum = scipy.fft.rfft(rng.standard_normal(length))
    hz = scipy.fft.rfftfreq(length, 1 / SAMPLING_RATE)
    low, high = np.array(drum.noise_band) * np.exp(0.08 * rng.standard_normal(2))
    noise = scipy.fft.irfft(spectrum / (1 + (low / np.maximum(hz, 1)) ** 4) / (1 + (hz / high) ** 8), length)
    sound += 2 * noise_gain * drum.noise_gain * noise * np.exp(-time / noise_decay)
    return (sound * np.minimum(time / drum.attack, 1)).astype(np.float32)


def _mix(stems: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Every stem to equal loudness while it plays (frames of 100 ms within 30 dB of the loudest), then -6 to 0 dB."""
    mix = np.zeros_like(stems[0])
    for stem in stems:
        power = np.add.reduceat(stem**2, np.arange(0, len(stem), 1600)) / 1600
        loudness = float(np.sqrt(power[power >= 1e-3 * power.max()].mean()))
        gain = 10 ** (rng.uniform(-6, 0) / 20)
        if loudness > 0:
            mix += np.float32(gain / loudness) * stem
    return mix


def _record(mix: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Equaliser, room, noise floor, sometimes a little overdrive, and the final level."""
    # Everything is drawn whether it is used or not, so that one choice does not shift the next.
    tilt_db, bumps_db = rng.normal(0, 1), rng.normal(0, 2.5, size=2)
    centres, cutoff = rng.uniform(np.log2(100), np.log2(6000), size=2), rng.uniform(3500, 7500)
    has_cutoff, has_room, overdriven = rng.random(3) < (0.4, 0.65, 0.08)
    decay, wet_db = rng.uniform(0.3, 2.0), rng.uniform(-20, -7)
    floor_db, level_db = rng.uniform(-70, -40), -23 + 2 * float(np.clip(rng.standard_normal(), -2.5, 2.5))

    # One length for all clips of a duration, long enough for the longest room not to wrap around.
    length = scipy.fft.next_fast_len(len(mix) + SAMPLING_RATE * 3 // 2, real=True)
    hz = scipy.fft.rfftfreq(length, 1 / SAMPLING_RATE).astype(np.float32)
    octaves = np.log2(np.maximum(hz, 40)).astype(np.float32)
    decibels = np.float32(tilt_db) * (octaves - np.float32(np.log2(1000)))
    for bump, centre in zip(bumps_db, centres, strict=True):
        decibels += np.float32(bump) * np.exp(-((octaves - np.float32(centre)) ** 2))
    gains = np.exp(np.float32(np.log(10) / 20) * decibels)
    gains *= 1 / (1 + (25 / np.maximum(hz, 1)) ** 4)
    if has_cutoff:
        gains /= np.sqrt(1 + (hz / np.float32(cutoff)) ** 8)
    if has_room:
        gains = gains * (1 + np.float32(10 ** (wet_db / 20)) * _room(decay, length, rng))
    wet = scipy.fft.irfft(scipy.fft.rfft(mix, length) * gains, length)[: len(mix)]
    wet *= np.float32(1 / max(float(np.sqrt(np.mean(wet**2))), 1e-9))
    if overdriven:
        wet = np.tanh(wet * np.float32(0.5)) * np.float32(2)
    wet += np.float32(10 ** (floor_db / 20)) * rng.standard_normal(len(wet), dtype=np.float32)
    wet *= np.float32(10 ** (level_db / 20) / max(float(np.sqrt(np.mean(wet**2))), 1e-9))
    # A rare high crest is turned down, never clipped.
    peak = float(np.abs(wet).max())
    return wet if peak <= 0.97 else wet * np.float32(0.97 / peak)


def _room(decay: float, length: int, rng: np.random.Generator) -> np.ndarray:
    """Spectrum of a room: noise that falls by 60 dB in `decay` seconds after a gap of 12 ms, at unit energy."""
    size = int(min(decay, 1.45) * SAMPLING_RATE)
    fall = np.exp(np.linspace(0, -6.9 * size / SAMPLING_RATE / decay, size))
    tail = rng.standard_normal(size, dtype=np.float32) * fall
    # A crude low-pass: air and walls swallow treble.
    tail[1:] = 0.6 * tail[1:] + 0.4 * tail[:-1]
    tail[: int(0.012 * SAMPLING_RATE)] = 0
    tail = (tail / np.sqrt(np.sum(tail**2))).astype(np.float32)
    return scipy.fft.rfft(tail, length)
