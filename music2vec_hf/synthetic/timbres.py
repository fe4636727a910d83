"""Timbres of the synthetic corpus: 19 pitched instruments and four drum kits, as tables of numbers.

These are centres: each clip redraws every number around them (`synthetic_render`), so that no two clips share a sound.
Times are in seconds, frequencies in Hz.
"""

from dataclasses import dataclass

SUSTAINED = 1e9  # a decay this long does not decay


@dataclass(frozen=True)
class Timbre:
    """One pitched instrument.

    A harmonic tone has amplitudes 1 / h ** rolloff in three bands of harmonics (1-2, 3-6, 7 and up), each with its own
    decay; `formants` are (frequency, gain in dB, width in octaves). With `fm` (ratio, index, decay of the index) the
    tone is a modulated sine, with `partials` (ratio, amplitude, decay) a sum of inharmonic sines.
    """

    rolloff: float = 1.0
    even: float = 1.0  # gain of the even harmonics
    formants: tuple[tuple[float, float, float], ...] = ()
    decays: tuple[float, float, float] = (SUSTAINED, SUSTAINED, SUSTAINED)
    attack: float = 0.01
    release: float = 0.06
    vibrato_cents: float = 0.0
    transient: float = 0.0  # level of the noise at the attack (pick, key, bow)
    breath: float = 0.0  # level of the noise that lasts as long as the note
    fm: tuple[float, float, float] | None = None
    partials: tuple[tuple[float, float, float], ...] = ()


TIMBRES = {
    "piano": Timbre(rolloff=1.2, decays=(1.4, 0.8, 0.35), attack=0.003, release=0.08, transient=0.10),
    "epiano": Timbre(fm=(1.0, 1.6, 0.35), decays=(1.2, 1.0, 1.0), attack=0.004, release=0.08),
    "organ": Timbre(rolloff=0.6, formants=((250, 6, 2.0),), attack=0.012, release=0.04, transient=0.03),
    "guitar": Timbre(rolloff=0.95, decays=(0.75, 0.4, 0.15), attack=0.002, release=0.05, transient=0.30),
    "strings": Timbre(rolloff=1.1, formants=((600, 4, 1.5),), attack=0.11, release=0.16, vibrato_cents=14,
                      breath=0.02),
    "brass": Timbre(rolloff=0.7, formants=((1200, 9, 1.2),), attack=0.045, release=0.07, vibrato_cents=5),
    "harpsichord": Timbre(rolloff=0.45, decays=(0.8, 0.7, 0.5), attack=0.001, release=0.03, transient=0.45),
    "mallet": Timbre(partials=((1, 1.0, 0.45), (3.9, 0.4, 0.12), (9.2, 0.2, 0.05)), attack=0.001, transient=0.2),
    "choir": Timbre(rolloff=1.3, formants=((650, 12, 0.5), (1100, 9, 0.5), (2700, 6, 0.6)), attack=0.09,
                    release=0.14, vibrato_cents=22, breath=0.05),
    "flute": Timbre(rolloff=2.1, attack=0.045, release=0.06, vibrato_cents=12, transient=0.1, breath=0.12),
    "clarinet": Timbre(rolloff=1.0, even=0.08, formants=((1500, 3, 1.5),), attack=0.03, release=0.05, breath=0.02),
    "trumpet": Timbre(rolloff=0.5, formants=((1400, 6, 1.0),), attack=0.025, release=0.05, vibrato_cents=8),
    "violin": Timbre(rolloff=0.85, formants=((500, 4, 0.7), (2600, 8, 0.8)), attack=0.06, release=0.07,
                     vibrato_cents=26, transient=0.05, breath=0.03),
    "lead": Timbre(rolloff=0.55, even=0.5, attack=0.004, release=0.03, vibrato_cents=4),
    "bell": Timbre(partials=((0.5, 0.3, 1.0), (1, 1.0, 0.9), (1.19, 0.4, 0.7), (2.0, 0.5, 0.6), (2.74, 0.4, 0.4),
                             (4.1, 0.25, 0.2)), attack=0.001, release=0.35),
    "accordion": Timbre(rolloff=0.5, formants=((900, 5, 1.0), (2200, 4, 1.0)), attack=0.035, release=0.05,
                        vibrato_cents=9),
    "upbass": Timbre(rolloff=1.7, decays=(0.7, 0.35, 0.12), attack=0.008, release=0.06, transient=0.15),
    "synthbass": Timbre(rolloff=0.9, decays=(1.2, 0.45, 0.18), attack=0.003, release=0.03),
    "tuba": Timbre(rolloff=1.3, formants=((280, 6, 1.2),), attack=0.05, release=0.06, breath=0.03),
}  # fmt: skip


@dataclass(frozen=True)
class DrumSound:
    """A sine gliding from one frequency to another plus band-passed noise; each with gain and decay."""

    tone: tuple[float, float] = (0.0, 0.0)  # first and last frequency
    tone_gain: float = 0.0
    tone_decay: float = 0.05
    noise_band: tuple[float, float] = (1000.0, 7500.0)
    noise_gain: float = 0.0
    noise_decay: float = 0.05
    attack: float = 0.0005


DRUM_KITS = {
    "acoustic": {
        "kick": DrumSound((150, 52), 1.0, 0.09, (800, 4000), 0.12, 0.008),
        "snare": DrumSound((230, 180), 0.45, 0.06, (900, 7000), 0.55, 0.075),
        "hat": DrumSound(noise_band=(5000, 7900), noise_gain=0.35, noise_decay=0.022),
        "openhat": DrumSound(noise_band=(4500, 7900), noise_gain=0.35, noise_decay=0.13),
        "ride": DrumSound((3300, 3300), 0.03, 0.2, (3500, 7900), 0.22, 0.16),
        "rim": DrumSound((1750, 1650), 0.5, 0.012, (1500, 6000), 0.3, 0.008),
    },
    "electronic": {
        "kick": DrumSound((220, 45), 1.1, 0.16, (2000, 7000), 0.08, 0.004),
        "snare": DrumSound((260, 200), 0.2, 0.05, (900, 4500), 0.7, 0.10),
        "hat": DrumSound(noise_band=(6200, 7900), noise_gain=0.4, noise_decay=0.016),
        "openhat": DrumSound(noise_band=(5500, 7900), noise_gain=0.4, noise_decay=0.10),
        "ride": DrumSound((5200, 5200), 0.04, 0.12, (5500, 7900), 0.2, 0.12),
        "rim": DrumSound((1100, 1050), 0.5, 0.02, (1500, 6000), 0.1, 0.006),
    },
    "brush": {
        "kick": DrumSound((110, 60), 0.7, 0.07),
        "snare": DrumSound(noise_band=(1500, 7500), noise_gain=0.4, noise_decay=0.11, attack=0.02),
        "hat": DrumSound(noise_band=(4000, 7900), noise_gain=0.22, noise_decay=0.035, attack=0.004),
        "openhat": DrumSound(noise_band=(3500, 7900), noise_gain=0.22, noise_decay=0.12, attack=0.01),
        "ride": DrumSound((2900, 2900), 0.03, 0.22, (3000, 7500), 0.15, 0.14),
        "rim": DrumSound((1400, 1350), 0.35, 0.01, (1500, 6000), 0.15, 0.008),
    },
    "hand": {
        "kick": DrumSound((120, 92), 0.8, 0.09, (500, 2500), 0.10, 0.01),
        "snare": DrumSound((330, 285), 0.7, 0.06, (800, 4000), 0.15, 0.015),
        "hat": DrumSound(noise_band=(4200, 7600), noise_gain=0.3, noise_decay=0.025, attack=0.012),
        "openhat": DrumSound(noise_band=(4200, 7600), noise_gain=0.3, noise_decay=0.08, attack=0.02),
        "ride": DrumSound((4100, 4100), 0.1, 0.09, (4500, 7600), 0.12, 0.05),
        "rim": DrumSound((2450, 2400), 0.6, 0.015),
    },
}
