"""Comments, docstrings and pages are plain English, and the names of tests are short.

A folder may have one of the listed phrases in 1,000 words. A folder or file that is not finished yet has its own bound;
the test fails once the bound is no longer needed, so that it is removed.
"""

import re
import tokenize
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = ("trio_ledger_plugin", "docs", "tests", "README.md", "CHANGELOG.md")
# Folders with packages of others or built pages.
IGNORED = {"node_modules", "_build"}
MOST_PER_THOUSAND = 1.0
LONGEST_NAME = 60

# A regular expression for each phrase, and what to write instead.
PHRASES = {
    r"who(so)?ever": "name the actor: the caller, the peer, the operator",
    r"whyever|whichever way|howsoever": "for any reason, in any case",
    r"whatever": "say which: any exception, any value",
    r"(no|some)body": "name the actor: no task, another program",
    r"told (of|to|that|what|by)": "is called with, gets, knows",
    r"tells? of": "reports, contains",
    r"tak(e|es|en) note": "handles, records",
    r"those (who|that)": "repeat the noun: the callers that wait",
    r"the law of": "Invariant:",
    r"befalls?|befell|befallen": "happens to, fails with",
    r"as ever": "as usual, as before",
    r"whence|whither": "from which, to which",
    r"any more": "no longer, or leave it out",
    r"strangers?": "an unauthenticated peer",
    r"parting": "disconnecting, closing",
    r"(?<!one )of (ours|theirs|(the|a) (peer|application|plugin|host|caller|task)'s)": "the peer's request, its own",
    r"let(s|ting)? (it|them|those|him) go": "releases, closes",
    r"for want of": "without, because there is no",
    r"for the sake of|\w+'s sake": "for, because of",
    r"c(o|a)mes? about": "happens, arises",
    r"in all(?=[.,;:)])": "in total, or leave it out",
    r"all the same": "anyway; it can also mean identical",
    r"anew": "again",
    r"lest": "so that ... not",
    r"one (less|more) \w+ an?": "a number and a unit",
}

# How many phrases in 1,000 words a folder has today.
UNFINISHED_PROSE: dict[str, float] = {
    "tests/support": 11,
}

# How many names that are too long a file has today.
UNFINISHED_NAMES: dict[str, int] = {}


def find_files(pattern: str) -> list[Path]:
    found = (path for place in PLACES for path in (ROOT / place, *(ROOT / place).rglob(pattern)))
    return sorted(path for path in found if path.match(pattern) and not IGNORED & set(path.parts))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read_prose(path: Path) -> str:
    """Return the comments and docstrings of a module, or a page without its code blocks, on one line."""
    if path.suffix == ".md":
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    else:
        text = "\n".join(read_comments(path))
    return re.sub(r"[\s#]+", " ", text)


def read_comments(path: Path) -> list[str]:
    found = []
    begins_statement = True
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and begins_statement):
                found.append(token.string)
            if token.type not in (tokenize.COMMENT, tokenize.NL):
                begins_statement = token.type in (tokenize.ENCODING, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    return found


def find_phrases(text: str) -> list[str]:
    return [found[0] for phrase in PHRASES for found in re.finditer(rf"\b(?:{phrase})\b", text, re.IGNORECASE)]


@cache
def count_by_folder() -> dict[str, tuple[float, str]]:
    """Return for each folder its phrases in 1,000 words, and a text that names its worst files."""
    words: Counter[str] = Counter()
    phrases: dict[str, list[tuple[int, str]]] = {}
    for path in [*find_files("*.py"), *find_files("*.md")]:
        if path != Path(__file__):
            folder, text = name_of(path.parent), read_prose(path)
            words[folder] += len(text.split())
            found = find_phrases(text)
            phrases.setdefault(folder, []).append((len(found), f"{name_of(path)}: {', '.join(found)}"))
    return {
        folder: (
            1000 * sum(number for number, _ in files) / max(words[folder], 1),
            "\n".join(line for number, line in sorted(files, reverse=True)[:5] if number),
        )
        for folder, files in phrases.items()
    }


@pytest.mark.parametrize("folder", sorted(count_by_folder()))
def test_prose_has_few_archaic_phrases(folder: str) -> None:
    """A newcomer would have to read every second sentence twice."""
    rate, worst = count_by_folder()[folder]
    assert rate <= UNFINISHED_PROSE.get(folder, MOST_PER_THOUSAND), f"{rate:.1f} in 1,000 words\n{worst}"
    if folder in UNFINISHED_PROSE:
        assert rate > MOST_PER_THOUSAND, f"{folder} is finished: remove it from UNFINISHED_PROSE"


@pytest.mark.parametrize("path", find_files("test_*.py"), ids=name_of)
def test_names_of_tests_are_short(path: Path) -> None:
    """A report of failed tests would be hard to read; what a user would lose belongs in the docstring."""
    names = re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    too_long = [name for name in names if len(name) > len("test_") + LONGEST_NAME]
    bound = UNFINISHED_NAMES.get(name_of(path), 0)
    assert len(too_long) <= bound, too_long
    assert too_long or not bound, f"{name_of(path)} is finished: remove it from UNFINISHED_NAMES"


def test_tables_name_existing_folders_and_files() -> None:
    """An entry whose folder was renamed would stay in the table for ever."""
    assert set(UNFINISHED_PROSE) <= set(count_by_folder())
    assert set(UNFINISHED_NAMES) <= {name_of(path) for path in find_files("test_*.py")}
