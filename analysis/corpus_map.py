"""A map of the documents of corpora, in the manner of analysis.plots.

It is by their sentence embeddings where there are some, else by their words.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
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
    """The documents of a sample in two main directions.

    Attributes:
        sizes: Corpus -> the number of its documents.
        basis: What the directions are of, in words.
        points: Corpus -> its documents of the sample: a pair of coordinates each.
        variance_shares: Of each direction.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    basis: str = "words"
    points: dict[str, list[list[float]]] = field(default_factory=dict)
    variance_shares: list[float] = field(default_factory=list)

    def to_json(self) -> str:
        """The map as a text, from which `from_json` makes the same map."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "DocumentMap":
        return cls(**json.loads(text))


Components = tuple[dict[str, list[list[float]]], list[float]]  # of a DocumentMap
Embeddings = Mapping[str, NDArray[np.float32]]  # corpus -> (documents of a sample, dimensions)


@plots.styled
def corpus_map(
    documents: DocumentMap,
    arm_order: Sequence[str] = (),
    width: float = plots.WIDTH,
) -> Figure:
    """Documents as dots in the two main directions of their embeddings, or else of their words.

    Contours enclose about half and nine tenths of a corpus. A corpus that has an arm's name has
    its style.
    """
    if not documents.points:
        return plots.placeholder("too few different documents or words", width)
    figure = plots.new_figure(3.2 if plots.is_column(width) else 4.6, width)
    axis = figure.subplots()
    order = list(dict.fromkeys([*arm_order, *documents.sizes]))
    points = {corpus: np.array(dots) for corpus, dots in documents.points.items()}
    for corpus, dots in points.items():
        style = arm_style(corpus, order)
        look = {"color": style["color"], "markersize": 2.6, "alpha": 0.35, "markeredgewidth": 0}
        axis.plot(*dots.T, style["marker"], **look)
    for corpus, dots in points.items():
        _contours(axis, dots, arm_style(corpus, order))
    x, y = (
        f"direction {n} ({share:.1%} of the variance)"
        for n, share in enumerate(documents.variance_shares, 1)
    )
    axis.set(xlabel=x, ylabel=y)
    plots.strip_frame(axis, "both")
    handles = [
        plots.legend_entry(wrapped(corpus, 34), **arm_style(corpus, order)) for corpus in points
    ]
    for label, width in (("around half", 1.6), ("around nine tenths", 0.9)):
        handles.append(plots.legend_entry(label, linestyle="-", linewidth=width))
    empty = [corpus for corpus in documents.sizes if corpus not in points]
    if empty:
        label = wrapped("no documents: " + ", ".join(empty), 34)
        handles.append(plots.legend_entry(label, marker="x"))
    plots.add_legend(figure, [], [], *handles)
    return figure


def document_map(corpora: Mapping[str, Sequence[str]], embeddings: Embeddings) -> DocumentMap:
    """Principal components of embeddings, or else of TF-IDF vectors.

    Without points for too few documents or words.

    Args:
        corpora: name -> the texts of its documents.
        embeddings: name -> their sentence embeddings, where the study has some.
    """
    sizes = {corpus: len(texts) for corpus, texts in corpora.items()}
    basis = "sentence embeddings" if embeddings else "words"
    return DocumentMap(sizes, basis, *_sample(corpora, embeddings))


def _sample(corpora: Mapping[str, Sequence[str]], embeddings: Embeddings) -> Components:
    if embeddings:
        of_sample = {corpus: len(vectors) for corpus, vectors in embeddings.items()}
        return _principal_components(np.concatenate([*embeddings.values()]), of_sample)
    from sklearn.feature_extraction.text import TfidfVectorizer

    samples: dict[str, list[str]] = {}
    for corpus, texts in corpora.items():
        usable = [text for text in texts if any(map(str.isalnum, text))]
        if usable:
            size = min(SHOWN, len(usable))
            samples[corpus] = random.Random(f"map/{corpus}").sample(usable, size)
    documents = [text for texts in samples.values() for text in texts]
    if len(set(documents)) < 3:
        return {}, []
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\w+", sublinear_tf=True, max_features=20_000)
    vectors = vectorizer.fit_transform(documents)
    return _principal_components(vectors, {name: len(texts) for name, texts in samples.items()})


def _principal_components(vectors: Any, sizes: Mapping[str, int]) -> Components:
    """The first two of vectors, of which each corpus has as many as `sizes` says, in order."""
    from sklearn.decomposition import PCA

    if min(vectors.shape) < 3:
        return {}, []
    pca = PCA(2, svd_solver="arpack", random_state=0)
    points = pca.fit_transform(vectors).astype(float)
    # the sign of a direction is arbitrary: make its largest weight positive
    largest = pca.components_[range(2), np.abs(pca.components_).round(6).argmax(axis=1)]
    # rounded, because the last bits may differ between machines
    points = (points * np.sign(largest)).round(5) + 0.0
    ends = np.cumsum([*sizes.values()])
    parts = [part.tolist() for part in np.split(points, ends[:-1])]
    return dict(zip(sizes, parts, strict=True)), pca.explained_variance_ratio_.tolist()


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


def alt_corpus_map(documents: DocumentMap) -> str:
    names = ", ".join(name for name, size in documents.sizes.items() if size)
    directions = f"the two main directions of their {documents.basis}"
    return f"Documents as dots in {directions}, by corpus: {names}."


def describe_corpus_map(documents: DocumentMap) -> str:
    parts = []
    for corpus, size in documents.sizes.items():
        if corpus not in documents.points:
            parts.append(f"{corpus}: 0 of {size} documents")
            continue
        points = np.array(documents.points[corpus])
        x, y = points.mean(axis=0)
        x_deviation, y_deviation = points.std(axis=0)
        parts.append(
            f"{corpus}: {len(points)} of {size} documents, centre ({x:.3f}, {y:.3f}), "
            f"standard deviation ({x_deviation:.3f}, {y_deviation:.3f})"
        )
    title = f"Documents in the two main directions of their {documents.basis}"
    if documents.variance_shares:
        shares = ", ".join(f"{share:.1%}" for share in documents.variance_shares)
        title += f" ({shares} of the variance)"
    return plots.description(title, parts)
