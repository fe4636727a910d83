"""Grammar by rule, for what codespell does not see: python docs/prose.py

Read are the pages, and in the library docstrings, help and messages. Printed are repeated words, a wrong `a` or `an`,
doubled spaces and stops; in the pages also long sentences and lines, and what belongs into a history: commits.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST_SENTENCE, LONGEST_LINE = 48, 140  # words, characters
# Heard, not written: silent h; u, eu and one that begin as "you" and "won"; abbreviations that are spelt out.
VOWEL = re.compile(r"(?!u[bnst][aeiu]|uni(?!n|m)|use|usu|uk|url|eu|one\b|once\b)[aeiou]|hour|honest", re.I)
SPELT = re.compile(r"[AEFHILMNORSX](?:[A-Z\d]|\b)|mp3|mfcc|npz|m4a")
SAID_AS_WORDS = re.compile(r"SHA|RAM|LoRA|MERT|FLAC|MARBLE|SLURM|RIFF|ROC|NaN|LAME|NUL|MAGNA|README")
RULES = (
    ("repeated word", re.compile(r"(?<![\w-])([A-Za-z]{2,})\s+\1(?![\w-])")),
    ("space before a stop", re.compile(r"\w [,;:.!?](?=\s|$)")),
    ("doubled stop", re.compile(r"(?<!\.)(?:\.\.|,,|;;|::)(?![.:\w])")),
)
COMMIT = re.compile(r"\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{7,40}\b")


def article_faults(text: str) -> Iterator[str]:
    """`a` before a vowel that is heard, `an` before a consonant."""
    for match in re.finditer(r"(?<![\w`'/*-])(an?)\s+([A-Za-z][\w-]*)", text):
        article, word = match[1], match[2]
        spelt = SPELT.match(word) and not SAID_AS_WORDS.match(word)
        vowel = bool(spelt or (len(word) > 1 and VOWEL.match(word)))
        if vowel != (article == "an"):
            yield f"article: {match[0]!r}"


def faults(text: str, page: bool) -> Iterator[str]:
    """What is wrong in a text; `page`: it is Markdown for a person."""
    if page:
        text = re.sub(r"^---\n.*?^---$", "", text, flags=re.M | re.S)
        text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
        yield from (
            f"line of {len(line)} characters: {line[:50]}" for line in text.splitlines() if len(line) > LONGEST_LINE
        )
        yield from (f"commit: {match[0]}" for match in COMMIT.finditer(text))
        prose = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("|", "#", "!", "    ")))
        for sentence in re.split(r"(?<=[.:!?)])\s+(?=[A-Z`*\[(])|;\s|\n\s*\n|\n\s*[-*\d]+\.? ", prose):
            if len(sentence.split()) > LONGEST_SENTENCE:
                yield f"sentence of {len(sentence.split())} words: {' '.join(sentence.split())[:70]}"
    text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"``.*?``|`[^`]*`", "`code`", text))
    for name, rule in RULES:
        yield from (f"{name}: {' '.join(match[0].split())!r}" for match in rule.finditer(text))
    yield from article_faults(text)


def texts() -> Iterator[tuple[str, str, bool]]:
    """Name, text, and whether it is a page, of everything that is read."""
    pages = [ROOT / "README.md", ROOT / "MODEL_CARD.md", ROOT / "examples" / "README.md"]
    for page in [*pages, *sorted((ROOT / "docs").glob("*.md"))]:
        yield page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8"), True
    for path in sorted((ROOT / "music2vec_hf").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                node = ast.Constant(
                    "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                )
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.count(" ") > 2:
                yield path.relative_to(ROOT).as_posix(), node.value, False


def main() -> int:
    """Print the faults of all texts; 1 if there are any."""
    found = [f"{name}: {fault}" for name, text, page in texts() for fault in faults(text, page)]
    print(*dict.fromkeys(found), sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
