"""Tables of the synthetic corpus: its ten genres, their chord progressions and the pools of instruments.

Nothing here is random and nothing here computes: `synthetic_score` reads these tables to write a score. Rhythm strings
hold one bar each ("x" an onset, "X" an accented one, "." a rest); bars are separated by "|" where a pattern is longer
than one bar. Variants of a pattern are ordered from sparse to dense.
"""

from dataclasses import dataclass

# Pools by role. Every genre draws from the same pools; its typical instruments are only twice as likely.
BASS_POOL = ("upbass", "synthbass", "tuba")
CHORDS_POOL = ("piano", "epiano", "organ", "guitar", "harpsichord", "accordion", "brass", "mallet", "strings")
MELODY_POOL = (
    "flute",
    "clarinet",
    "trumpet",
    "violin",
    "lead",
    "bell",
    "mallet",
    "piano",
    "guitar",
    "accordion",
    "organ",
)
PAD_POOL = ("strings", "choir", "organ", "brass")
INSTRUMENTS = (
    "piano",
    "epiano",
    "organ",
    "guitar",
    "strings",
    "brass",
    "harpsichord",
    "mallet",
    "choir",
    "flute",
    "clarinet",
    "trumpet",
    "violin",
    "lead",
    "bell",
    "accordion",
    "upbass",
    "synthbass",
    "tuba",
)
KITS = ("acoustic", "electronic", "brush", "hand")

# Chord symbols are written in C and transposed to the key of the clip: (major progressions, minor progressions).
PROGRESSIONS = {
    "cadence": (
        ("C F G C", "C Am Dm G", "C G Am F C G", "C Em F Dm", "C Dm G Em", "Am Dm G C", "F C Dm G", "Em Am Dm G"),
        (
            "Cm Fm G Cm",
            "Cm Ab Fm G",
            "Cm Fm Bb Eb Ab Ddim G Cm",
            "Cm Gm Ab Fm",
            "Fm Bb Eb Ab",
            "Ab Fm G Cm",
            "Eb Bb Cm G",
        ),
    ),
    "sevenths": (
        ("Cmaj7 Am7 Dm7 G7", "C Fmaj7 Bm7b5 Em7 Am7 Dm7 G7 C", "C Em7 Am7 Dm7", "Fmaj7 G7 Em7 Am7"),
        ("Cm Fm7 Dm7b5 G7", "Cm Fm7 Bb7 Ebmaj7 Abmaj7 Dm7b5 G7 Cm", "Cm Abmaj7 Fm7 Bb7", "Fm7 Bb7 Ebmaj7 Abmaj7"),
    ),
    "dance": (
        ("C C F G", "C F G C", "C Am F G", "C G Dm G", "F C G G", "Am G F G", "Dm G C F"),
        ("Cm Cm Fm G", "Cm Bb Cm G", "Cm Ab Bb Cm", "Cm Gm Bb Fm", "Fm Cm Bb Cm", "Eb Bb Cm Gm"),
    ),
    "jazz": (
        (
            "Cmaj7 Am7 Dm7 G7",
            "Cmaj7 A7 Dm7 G7",
            "Cmaj7 Fmaj7 Em7 A7",
            "Dm7 G7 Cmaj7 A7",
            "Em7 A7 Dm7 G7",
            "Fmaj7 Em7 Dm7 G7",
        ),
        (
            "Cm7 Fm7 Dm7b5 G7",
            "Cm7 Abmaj7 Dm7b5 G7",
            "Cm7 Fm7 Bb7 Ebmaj7",
            "Dm7b5 G7 Cm7 Fm7",
            "Fm7 Bb7 Ebmaj7 Abmaj7",
            "Fm7 G7 Cm7 Abmaj7",
        ),
    ),
    "blues": (
        (
            "C7 C7 C7 C7 F7 F7 C7 C7 G7 F7 C7 G7",
            "C7 F7 C7 C7 F7 F7 C7 C7 G7 F7 C7 C7",
            "C7 F7 C7 G7",
            "F7 F7 C7 C7 G7 F7 C7 G7",
            "G7 F7 C7 G7 C7 C7 F7 F7",
        ),
        (
            "Cm7 Cm7 Cm7 Cm7 Fm7 Fm7 Cm7 Cm7 Ab7 G7 Cm7 G7",
            "Cm7 Fm7 Cm7 Cm7 Fm7 Fm7 Cm7 Cm7 G7 Fm7 Cm7 Cm7",
            "Cm7 Fm7 Cm7 Gm7",
            "Fm7 Fm7 Cm7 Cm7 Ab7 G7 Cm7 G7",
            "Gm7 Fm7 Cm7 Gm7 Cm7 Cm7 Fm7 Fm7",
        ),
    ),
    "rock": (
        ("C G Am F", "C F G F", "C Bb F C", "C Em F G", "C F Am G", "Am F C G", "F G Am C", "F C G Am"),
        (
            "Cm Ab Eb Bb",
            "Cm Bb Ab Bb",
            "Cm Fm Ab Bb",
            "Cm Eb Bb Fm",
            "Cm Gm Ab Bb",
            "Ab Bb Cm Cm",
            "Ab Eb Bb Cm",
            "Fm Ab Cm Bb",
        ),
    ),
    "loop": (
        ("C F", "C Am", "C G", "C F G F", "C Em F G", "Dm G C C", "F G Am Em", "Am F"),
        ("Cm Fm", "Cm Ab", "Cm Bb", "Cm Bb Ab Bb", "Cm Fm Gm Cm", "Fm Bb Cm Cm", "Ab Bb Cm Gm", "Fm Ab"),
    ),
}


@dataclass(frozen=True)
class GenreStyle:
    """How one genre is played. Times are in beats; `bar_beats` beats to the bar."""

    tempo: tuple[float, float]  # beats per minute, slowest and fastest
    families: tuple[str, ...]  # keys of PROGRESSIONS; one is drawn per clip, repeated names weigh more
    chord_beats: tuple[float, ...]  # how long a chord lasts; one is drawn per clip
    chords: tuple[str, ...]
    bass: tuple[str, ...]
    bass_motion: str  # "root", "fifths", "moving", "walking" or "boogie"
    melody_steps: int  # grid points per bar
    melody_chance: tuple[float, float]  # chance of an onset on the beat and off the beat, at middle density
    drums: tuple[dict, ...]  # sound -> rhythm string
    typical: tuple[str, ...]
    bar_beats: int = 4
    chords_legato: float = 1.0  # share of the time to the next chord onset that a chord is held
    broken_chords: bool = False
    swing: tuple[float, float] = (0.5, 0.5)  # where the second eighth falls inside the beat
    beat_thirds: bool = False  # a beat divides in three (compound metre)


STYLES = {
    "chorale": GenreStyle(
        tempo=(60, 110),
        families=("cadence",),
        chord_beats=(2,),
        chords=("x.x.", "xxxx", "xxxx"),
        bass=("xxxx", "x.xxx.xx"),
        bass_motion="moving",
        melody_steps=8,
        melody_chance=(0.95, 0.22),
        drums=(
            {"kick": "x...", "hat": "..x."},
            {"kick": "x.x.", "ride": "xxxx"},
            {"kick": "x.x.", "hat": "xxxx", "rim": "...x"},
        ),
        typical=("organ", "strings", "choir", "brass", "tuba"),
    ),
    "baroque": GenreStyle(
        tempo=(70, 120),
        families=("cadence", "cadence", "cadence", "sevenths"),
        chord_beats=(2, 4),
        chords=("xxxxxxxx", "xxxxxxxx", "xxxxxxxxxxxxxxxx"),
        bass=("xxxx", "xxxxxxxx"),
        bass_motion="moving",
        melody_steps=8,
        melody_chance=(0.8, 0.5),
        drums=(
            {"kick": "x.......", "hat": "..x...x."},
            {"kick": "x...x...", "hat": "x.x.x.x.", "rim": "......x."},
            {"kick": "x...x...", "ride": "xxxxxxxx"},
        ),
        typical=("harpsichord", "violin", "flute", "strings", "upbass"),
        broken_chords=True,
    ),
    "waltz": GenreStyle(
        tempo=(90, 180),
        families=("cadence",),
        chord_beats=(3, 6),
        chords=(".xx", ".xx", "..x"),
        bass=("X..",),
        bass_motion="fifths",
        melody_steps=6,
        melody_chance=(0.75, 0.25),
        drums=({"kick": "X..", "snare": ".xx"}, {"kick": "X..", "hat": ".xx"}, {"kick": "X..", "ride": "xxx"}),
        typical=("accordion", "strings", "clarinet", "piano", "tuba"),
        bar_beats=3,
        chords_legato=0.6,
    ),
    "jig": GenreStyle(
        tempo=(80, 130),
        families=("dance",),
        chord_beats=(2, 2, 4),
        chords=("..x..x", "x.xx.x"),
        bass=("x..x..",),
        bass_motion="fifths",
        melody_steps=6,
        melody_chance=(0.95, 0.75),
        drums=(
            {"kick": "x..x..", "hat": "..x..x"},
            {"kick": "x.....", "hat": "x.xx.x", "rim": "...x.."},
            {"kick": "x..x..", "hat": "xxxxxx"},
        ),
        typical=("violin", "flute", "accordion", "guitar"),
        bar_beats=2,
        chords_legato=0.6,
        beat_thirds=True,
    ),
    "swing": GenreStyle(
        tempo=(90, 190),
        families=("jazz",),
        chord_beats=(2, 4, 4),
        chords=("x......x|...x....", "...x...x|x..x....", "x..x....|.x..x..x", ".x.x..x.|x..x.x.."),
        bass=("xxxx",),
        bass_motion="walking",
        melody_steps=8,
        melody_chance=(0.5, 0.6),
        drums=(
            {"ride": "x.xxx.xx", "hat": "..x...x."},
            {"ride": "x.xxx.xx", "hat": "..x...x.", "snare": ".......x"},
            {"ride": "x.xxx.xx", "hat": "..x...x.", "kick": "x..x....", "snare": "...x...x"},
        ),
        typical=("piano", "trumpet", "clarinet", "upbass", "brass"),
        chords_legato=0.5,
        swing=(0.60, 0.68),
    ),
    "blues": GenreStyle(
        tempo=(70, 140),
        families=("blues",),
        chord_beats=(4,),
        chords=("..x...x.", "x..x...x", ".x.x.x.x", "xxxxxxxx"),
        bass=("xxxx", "xxxxxxxx", "xxxxxxxx"),
        bass_motion="boogie",
        melody_steps=8,
        melody_chance=(0.5, 0.5),
        drums=(
            {"kick": "x...x...", "snare": "..x...x.", "hat": "x.x.x.x."},
            {"kick": "x...x...", "snare": "..x...x.", "hat": "xxxxxxxx"},
            {"kick": "x..xx...", "snare": "..x...x.", "ride": "xxxxxxxx"},
        ),
        typical=("guitar", "organ", "piano", "upbass"),
        chords_legato=0.6,
        swing=(0.62, 0.68),
    ),
    "rock": GenreStyle(
        tempo=(90, 160),
        families=("rock",),
        chord_beats=(4, 4, 2),
        chords=("x...x...", "x..x..x.", "xxxxxxxx", "xxxxxxxx"),
        bass=("x..xx...", "xxxxxxxx", "xxxxxxxx"),
        bass_motion="root",
        melody_steps=8,
        melody_chance=(0.6, 0.4),
        drums=(
            {"kick": "X...x...", "snare": "..X...X.", "hat": "x.x.x.x."},
            {"kick": "X...xx..", "snare": "..X...X.", "hat": "xxxxxxxx"},
            {"kick": "X..x.x..", "snare": "..X...X.", "hat": "xxxxxxxx"},
        ),
        typical=("guitar", "lead", "organ", "synthbass"),
        chords_legato=0.9,
    ),
    "bossa": GenreStyle(
        tempo=(90, 150),
        families=("jazz", "sevenths"),
        chord_beats=(4, 4, 8),
        chords=("x..x..x.|..x..x..", "x..x..x.|..x.x..x"),
        bass=("x..xx..x",),
        bass_motion="fifths",
        melody_steps=8,
        melody_chance=(0.4, 0.5),
        drums=(
            {"rim": "x..x..x.|..x..x..", "hat": "x.x.x.x."},
            {"rim": "x..x..x.|..x..x..", "hat": "xxxxxxxx", "kick": "x..xx..x"},
        ),
        typical=("guitar", "epiano", "flute", "mallet", "upbass"),
        chords_legato=0.7,
    ),
    "house": GenreStyle(
        tempo=(105, 140),
        families=("loop",),
        chord_beats=(4, 4, 8),
        chords=("x..x..x.........", "x..x..x.x..x..x."),
        bass=("..x...x...x...x.", "..xx..x...xx..x."),
        bass_motion="root",
        melody_steps=16,
        melody_chance=(0.35, 0.28),
        drums=(
            {"kick": "XXXX", "hat": ".x.x.x.x"},
            {"kick": "XXXX", "openhat": ".x.x.x.x", "snare": ".x.x"},
            {"kick": "XXXX", "openhat": ".x.x.x.x", "hat": "xxxxxxxxxxxxxxxx", "snare": ".x.x"},
        ),
        typical=("lead", "epiano", "piano", "synthbass"),
        chords_legato=0.6,
    ),
    "reggae": GenreStyle(
        tempo=(70, 110),
        families=("loop", "rock"),
        chord_beats=(4, 2),
        chords=("..x...x.", "....x.......x.x.", ".x.x.x.x"),
        bass=("x..x..x.....x...", "x..xx.....x.x.x.", "..x.x.x...x.x..x"),
        bass_motion="moving",
        melody_steps=8,
        melody_chance=(0.4, 0.45),
        drums=(
            {"kick": "..X...X.", "hat": ".x.x.x.x"},
            {"kick": "..X...X.", "rim": "..x...x.", "hat": "xxxxxxxx"},
            {"kick": "..X...X.", "snare": ".....x..|..x....x", "hat": "xxxxxxxx"},
        ),
        typical=("organ", "guitar", "trumpet", "synthbass"),
        chords_legato=0.35,
    ),
}
GENRES = tuple(STYLES)
