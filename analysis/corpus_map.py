"""A map of the documents of corpora, in the manner of analysis.plots.

It is by their sentence embeddings where there are some, else by their words.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from analysis import plots
from analysis.plots import arm_style, wrapped

SHOWN = 500  # documents of a corpus


@dataclass(frozen=True)
class DocumentMap:
    """The documents of a sample in two main directions."""

    points: dict[str, np.ndarray] = field(default_factory=dict)  # corpus -> (documents, 2)
    variance_shares: list[float] = field(default_factory=list)  # of each direction


Embeddings = Mapping[str, NDArray[np.float32]]  # corpus -> (documents of a sample, dimensions)


@plots.styled
def corpus_map(
    corpora: Mapping[str, Sequence[str]],
    embeddings: Embeddings,
    arm_order: Sequence[str] = (),
    width: float = plots.WIDTH,
) -> Figure:
    """Documents as dots in the two main directions of their embeddings, or else of their words.

    Contours enclose about half and nine tenths of a corpus. A corpus that has an arm's name has
    its style.
    """
    document_map = _document_map(corpora, embeddings)
    if not document_map.points:
        return plots.placeholder("too few different documents or words", width)
    figure = plots.new_figure(3.2 if plots.is_column(width) else 4.6, width)
    axis = figure.subplots()
    order = list(dict.fromkeys([*arm_order, *corpora]))
    for corpus, dots in document_map.points.items():
        style = arm_style(corpus, order)
        look = {"color": style["color"], "markersize": 2.6, "alpha": 0.35, "markeredgewidth": 0}
        axis.plot(*dots.T, style["marker"], **look)
    for corpus, dots in document_map.points.items():
        _contours(axis, dots, arm_style(corpus, order))
    x, y = (
        f"direction {n} ({share:.1%} of the variance)"
        for n, share in enumerate(document_map.variance_shares, 1)
    )
    axis.set(xlabel=x, ylabel=y)
    plots.strip_frame(axis, "both")
    handles = [
        plots.legend_entry(wrapped(corpus, 34), **arm_style(corpus, order))
        for corpus in document_map.points
    ]
    for label, width in (("around half", 1.6), ("around nine tenths", 0.9)):
        handles.append(plots.legend_entry(label, linestyle="-", linewidth=width))
    empty = [corpus for corpus in corpora if corpus not in document_map.points]
    if empty:
        label = wrapped("no documents: " + ", ".join(empty), 34)
        handles.append(plots.legend_entry(label, marker="x"))
    plots.add_legend(figure, [], [], *handles)
    return figure


def _document_map(corpora: Mapping[str, Sequence[str]], embeddings: Embeddings) -> DocumentMap:
    """Principal components of embeddings, or else of TF-IDF vectors.

    Empty for too few documents or words.
    """
    if embeddings:
        sizes = {corpus: len(vectors) for corpus, vectors in embeddings.items()}
        return _principal_components(np.concatenate([*embeddings.values()]), sizes)
    from sklearn.feature_extraction.text import TfidfVectorizer

    samples: dict[str, list[str]] = {}
    for corpus, texts in corpora.items():
        usable = [text for text in texts if any(map(str.isalnum, text))]
        if usable:
            size = min(SHOWN, len(usable))
            samples[corpus] = random.Random(f"map/{corpus}").sample(usable, size)
    documents = [text for texts in samples.values() for text in texts]
    if len(set(documents)) < 3:
        return DocumentMap()
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\w+", sublinear_tf=True, max_features=20_000)
    vectors = vectorizer.fit_transform(documents)
    return _principal_components(vectors, {name: len(texts) for name, texts in samples.items()})


def _principal_components(vectors: Any, sizes: Mapping[str, int]) -> DocumentMap:
    """The first two of vectors, of which each corpus has as many as `sizes` says, in order."""
    from sklearn.decomposition import PCA

    if min(vectors.shape) < 3:
        return DocumentMap()
    pca = PCA(2, svd_solver="arpack", random_state=0)
    points = pca.fit_transform(vectors)
    # the sign of a direction is arbitrary: make its largest weight positive
    largest = pca.components_[range(2), np.abs(pca.components_).round(6).argmax(axis=1)]
    # rounded, because the last bits may differ between machines
    points = (points * np.sign(largest)).round(5) + 0.0
    ends = np.cumsum([*sizes.values()])
    by_corpus = dict(zip(sizes, np.split(points, ends[:-1]), strict=True))
    return DocumentMap(by_corpus, pca.explained_variance_ratio_.tolist())


def basis(embeddings: Embeddings) -> str:
    """What the directions are of, in words."""
    return "sentence embeddings" if embeddings else "words"


def _contours(axis: Axes, dots: np.ndarray, style: dict[str, Any]) -> None:
    try:
        density = stats.gaussian_kde(dots.T)
    except (ValueError, np.linalg.LinAlgError):
        return
    margin = 3 * dots.std(axis=0)
    x, y = np.linspace(dots.min(axis=0) - margin, dots.max(axis=0) + margin, 80).T
    heights = density(np.array(np.meshgrid(x, y)).reshape(2, -1)).reshape(80, 80)
    levels = np.quantile(density(dots.T), [0.1, 0.5])
    if levels[0] < levels[1] < heights.max():
        axis.contour(
            x,
            y,
            heights,
            levels=levels,
            colors=style["color"],
            linestyles=style["linestyle"],
            linewidths=[0.9, 1.6],
        )


def alt_corpus_map(corpora: Mapping[str, Sequence[str]], embeddings: Embeddings) -> str:
    names = ", ".join(name for name, texts in corpora.items() if texts)
    of = basis(embeddings)
    return f"Documents as dots in the two main directions of their {of}, by corpus: {names}."


def describe_corpus_map(corpora: Mapping[str, Sequence[str]], embeddings: Embeddings) -> str:
    document_map = _document_map(corpora, embeddings)
    parts = []
    for corpus, texts in corpora.items():
        points = document_map.points.get(corpus)
        if points is None:
            parts.append(f"{corpus}: 0 of {len(texts)} documents")
            continue
        x, y = points.mean(axis=0)
        x_deviation, y_deviation = points.std(axis=0)
        parts.append(
            f"{corpus}: {len(points)} of {len(texts)} documents, centre ({x:.3f}, {y:.3f}), "
            f"standard deviation ({x_deviation:.3f}, {y_deviation:.3f})"
        )
    title = f"Documents in the two main directions of their {basis(embeddings)}"
    if document_map.variance_shares:
        shares = ", ".join(f"{share:.1%}" for share in document_map.variance_shares)
        title += f" ({shares} of the variance)"
    return plots.description(title, parts)
