"""What a film review is about, by its words: a fixed rule, for the two examples on reviews.

A review's topic is the first of TOPICS that a word of it belongs to, whatever its case; what belongs to none is
"other". An opinion is strong where it gave 1, 2, 9 or 10 stars; the data has no reviews of 5 or 6.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from perdure import recipes

TOPICS = {
    "horror": {"horror", "zombie", "zombies", "vampire", "vampires", "slasher", "ghost", "ghosts"},
    "war": {"war", "soldier", "soldiers", "nazi", "nazis", "army"},
    "children": {"kid", "kids", "children", "disney", "cartoon", "cartoons"},
    "comedy": {"comedy", "comedies", "funny", "hilarious"},
    "documentary": {"documentary", "documentaries", "footage", "interview", "interviews"},
}
STRONG = {1, 2, 9, 10}


def topic(text: str, topics: Iterable[str] = TOPICS) -> str:
    """The first of these topics that a word of the text belongs to."""
    words = set(re.findall(r"\w+", text.lower()))
    return next((name for name in topics if words & TOPICS[name]), "other")


def reviews(file: Path, seen: set[bytes], first: int | None = None) -> pa.Table:
    """A file's reviews whose text was not seen before, whatever its case and spaces; `seen` grows by them.

    `first` takes only so many of the file.

    The column `domain` is the topic of a strong opinion, "mild" for a mild one on a topic, and "other" for the rest.
    """
    table = recipes.read(file)[:first]
    contents = enumerate(recipes.Text().contents(table))
    table = table.take([row for row, text in contents if not (text in seen or seen.add(text))])
    topics = [topic(text) for text in table["text"].to_pylist()]
    rows = zip(topics, table["rating"].to_pylist(), strict=True)
    return table.append_column("domain", [[t if t == "other" or stars in STRONG else "mild" for t, stars in rows]])
