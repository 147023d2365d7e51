"""Code, documentation, and messages are plain American English, in the project's terms."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = (".ci", ".github", "benchmarks", "clients", "configs", "docs", "e3d_jax", "space", "tests")
SUFFIXES = {".cff", ".md", ".py", ".toml", ".yaml", ".yml"}
IZE = (
    "anonym categor central color discret emphas equal final general initial local maxim memor minim normal optim "
    "organ parallel parametr penal polar quant random raster real recogn regular serial special stabil standard summar "
    "synchron synthes token util vector visual"
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A wording to avoid.

    Attributes:
      pattern: a regular expression; a space in it matches any white space, and the comment signs of wrapped lines.
      instead: what to write.
      bad: text that breaks the rule.
      good: similar text that does not.
    """

    pattern: str
    instead: str
    bad: str
    good: str

    @property
    def regex(self) -> re.Pattern[str]:
        """The compiled pattern; words end at underscores, as they do in names."""
        spaced = self.pattern.replace(" ", r"(?:\s|\n\s*#)+")
        return re.compile(rf"(?<![A-Za-z])(?:{spaced})(?![a-z])")


COMPARED = "better|faster|fewer|larger|less|longer|more|slower|smaller|worse"
COUNTED = "bytes|calls|examples|files|images|meshes|objects|records|rows|shards|steps|views|windows"
UNIT = "batch|call|core|device|domain|example|image|line|machine|node|object|process|second|shard|step|view"
RULES = [
    # American spelling.
    Rule("(?:[Cc]olo|COLO)(?:u|U)r(?:s|ed|ing|ful|less)?", "color", "the colours", "the colors"),
    Rule("(?:[Gg]rey|GREY)(?:s|ed|scale)?", "gray", "grey_level", "gray_level"),
    Rule("(?i:en|con|re)?[Cc]entre[sd]?|CENTRES?", "center", "the ring's centre", "recentered"),
    Rule("(?i:behaviour|neighbour|favour|honour|labour)(?:s|ed|ing|hood|able|al)?", "-or", "neighbours", "neighbors"),
    Rule(
        f"(?i:(?:de|non|pre|re|un)?(?:{IZE.replace(' ', '|')}))is(?:e|es|ed|er|ers|ing|ations?)",
        "-ize",
        "unnormalised",
        "normalized, realism",
    ),
    Rule("(?i:anal|paral)yse[sd]?", "-yze", "analysed", "analyzed, analysis"),
    Rule("(?i:artefact)s?", "artifact", "artefacts", "artifacts"),
    Rule("(?i:label|model|travel|signal)l(?:ed|ing)", "-led, -ling: one l", "labelled", "labeled"),
    Rule("(?i:towards|whilst|amongst|learnt|misspelt|licence)", "American forms", "towards +y", "toward +y"),
    # Phrases that a reader stumbles over.
    Rule("[Ss]o many", "the number: N devices of this machine", "so many devices", "many devices"),
    Rule(
        rf"(?<!there\x20)(?<!There\x20)(?:is|are|was|were) no(?! (?:{COMPARED}))",
        "is not a",
        "it is no mesh",
        "no mesh",
    ),
    Rule("(?:what|which) becomes of", "the result of", "what becomes of it", "what it becomes"),
    Rule(r"[Tt]old|[Tt]ells?(?!\()", "given, states, describes", "is told of noise", "stream.tell()"),
    Rule("of a sort", "of a kind", "of a sort: views", "to sort"),
    Rule(
        "(?:leave|left|leaves|keep|kept|stay|stays|be) (?:them |it |all )?as they are",
        "unchanged",
        "leaves them as they are",
        "as they arrive",
    ),
    Rule("(?<=[\"'])Of [a-z]+", "a noun: Seed of ...", '"Of all randomness."', '"Seed of all randomness."'),
    Rule(
        "(?:wanted|expected|needed) (?:is|are)(?= (?:an?|the|[0-9{]))", "expected ...", "wanted are 8", "what is wanted"
    ),
    Rule("for want of", "because of missing", "for want of memory", "want"),
    Rule(f"(?:{COUNTED}|GB|[Mm]inutes|ms) an? (?:{UNIT})", "per", "objects a second", "objects per second"),
    Rule(f"(?:one|two) [a-z]+ an? (?:{UNIT})", "per", "one row an object", "one row per object"),
    # Terms.
    Rule(
        "[Uu]nseen (?:[a-z]+ )?(?:loss|meshes|objects?|records|views?)|--unseen|unseen=",
        "held-out objects, novel views",
        "unseen synthetic objects",
        "unseen texels",
    ),
    Rule("[Dd]ata sets?", "dataset", "a data set", "data settings"),
    Rule("[Jj]udged", "scored, compared with", "is judged by", "judgment"),
    Rule("averaged (?:weights|parameters)|the average of the parameters", "EMA weights", "averaged weights", "average"),
    Rule("records of latents|encoded records|latent records", "cached latents", "records of latents", "cached latents"),
    Rule("last_level_share|told_noise|drop_condition|max_skipped", "the current setting", "told_noise", "cond_dropout"),
    Rule(r"python3? -m e3d_jax\.[a-z]+", "e3d COMMAND", "python -m e3d_jax.weights", "python -m e3d_jax infer"),
    Rule("# ?(?:TODO|FIXME|XXX)", "an issue", "# TODO: fix", "# Fix"),
]


def sources() -> Iterator[pathlib.Path]:
    """Yield the files of the project that people read."""
    for path in sorted(ROOT.iterdir()):
        if path.is_file() and path.suffix in SUFFIXES:
            yield path
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path != pathlib.Path(__file__) and (path.suffix in SUFFIXES or folder == ".ci"):
                yield path


def read(path: pathlib.Path) -> str:
    """Return a file's text, without the old names in the changelog and the word list in CONTRIBUTING."""
    text = path.read_text("utf-8")
    if path.name == "CHANGELOG.md":
        return re.sub("`[^`\n]*`", "``", text)
    if path.name == "CONTRIBUTING.md":
        return re.sub(r"(?m)^\|.*$", "|", text)
    return text


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {str(path.relative_to(ROOT)): read(path) for path in sources()}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.bad)
def test_nothing_is_worded_like(rule, texts):
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {' '.join(match[0].split())!r}; write: {rule.instead}"
        for name, text in texts.items()
        for match in rule.regex.finditer(text)
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.bad)
def test_a_rule_finds_its_bad_example(rule):
    assert rule.regex.search(rule.bad)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.bad)
def test_a_rule_allows_its_good_example(rule):
    assert not rule.regex.search(rule.good)


def test_phrases_are_found_across_the_lines_of_a_comment():
    rule = next(rule for rule in RULES if rule.bad == "so many devices")
    assert rule.regex.search("    # that so\n    # many devices")


def test_all_parts_of_the_project_are_read(texts):
    assert {"README.md", "pyproject.toml", "train.py", ".ci/run", "e3d_jax/cameras.py", "docs/tpu.md"} <= set(texts)
