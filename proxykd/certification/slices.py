"""Which prompts stand together: by the user's columns, language, length and topic. By what is asked alone, never by
what came of it, so that a slice's verdict keeps its level."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from proxykd.certification.languages import language_of
from proxykd.certification.prompts import Prompt

OVERALL = "overall"
FEWEST = 20
"""Prompts of a slice; smaller ones of a kind are taken together as `other`, if there are as many then."""
TOPIC_PROMPTS, MOST_TOPICS = 100, 8
"""Prompts a topic, about; with fewer than two topics' worth there are none."""
WORD = r"(?u)\b[^\W\d_]{2,}\b"
"""Of topics: numbers are none."""
TOPIC_WORDS, EXAMPLES = 3, 2


@dataclass(frozen=True)
class Slice:
    """`kind` is overall, language, length, topic or a column's name; `places` are those of its prompts, and `examples`
    of these a few."""

    kind: str
    name: str
    places: tuple[int, ...]
    examples: tuple[int, ...]


def slices_of(prompts: Sequence[Prompt], by: Sequence[str]) -> list[Slice]:
    """All slices of the prompts, the whole first, each set of prompts once: what one slice says another need not say,
    and every further one makes the others' verdicts dearer."""
    texts, everything = [one.text for one in prompts], tuple(range(len(prompts)))
    found = [Slice(OVERALL, OVERALL, everything, ())]
    for name in by:
        found += _grouped(name, [one.columns[name] for one in prompts])
    found += _grouped("language", [language_of(text) for text in texts])
    found += _by_length([len(text) for text in texts])
    found += _topics(texts)
    distinct: dict[tuple[int, ...], Slice] = {}
    for one in found:
        distinct.setdefault(one.places, one)
    return list(distinct.values())


def _grouped(kind: str, labels: Sequence[str], order: Sequence[str] = ()) -> list[Slice]:
    """A slice a label, if there are two; those of `order` in their order, others after them by name."""
    sizes = Counter(labels)
    places: dict[str, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        places[label if sizes[label] >= FEWEST else "other"].append(place)
    if len(places["other"]) < FEWEST:
        del places["other"]
    if len(places) < 2:
        return []
    names = sorted(places, key=lambda name: (order.index(name) if name in order else len(order), name))
    return [Slice(kind, name, tuple(places[name]), tuple(places[name][:EXAMPLES])) for name in names]


def _by_length(characters: Sequence[int]) -> list[Slice]:
    """Thirds, by characters of the prompt."""
    low, high = (int(np.quantile(characters, share)) for share in (1 / 3, 2 / 3))
    names = (f"up to {low} characters", f"up to {high} characters", f"over {high} characters")
    return _grouped("length", [names[(count > low) + (count > high)] for count in characters], names)


def _topics(texts: Sequence[str]) -> list[Slice]:
    """Clusters of the prompts' words (TF-IDF, k-means from a fixed seed), each named by the words that lead its
    centre."""
    count = min(MOST_TOPICS, len(texts) // TOPIC_PROMPTS)
    if count < 2:
        return []
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from threadpoolctl import threadpool_limits

    vectoriser = TfidfVectorizer(token_pattern=WORD, stop_words="english", min_df=2, max_df=0.5, max_features=5000)
    try:
        vectors = vectoriser.fit_transform(texts)
    except ValueError:  # no word is in two prompts and not in half of them
        return []
    # The order of sums, and so the clusters, would depend on the threads; equal prompts make fewer clusters than asked.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        means = KMeans(count, n_init=4, random_state=0).fit(vectors)
        distances = means.transform(vectors)
    words = vectoriser.get_feature_names_out()
    found = []
    for cluster, centre in enumerate(means.cluster_centers_):
        places = np.flatnonzero(means.labels_ == cluster)
        if len(places) >= FEWEST:
            leading = [str(words[i]) for i in np.argsort(-centre, kind="stable")[:TOPIC_WORDS] if centre[i] > 0]
            typical = places[np.argsort(distances[places, cluster], kind="stable")[:EXAMPLES]]
            name = ", ".join(leading) or "other words"
            found.append(Slice("topic", name, tuple(map(int, places)), tuple(map(int, typical))))
    return sorted(found, key=lambda one: (-len(one.places), one.name))
