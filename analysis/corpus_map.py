"""Where the documents of corpora lie beside each other, in the manner of analysis.plots: a map of their words."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from analysis import plots
from analysis.plots import look, wrapped

SHOWN = 500  # documents of a corpus


@plots.styled
def corpus_map(corpora: Mapping[str, Sequence[str]], arm_order: Sequence[str] = ()) -> Figure:
    """Documents as dots in the two main directions of their words, with contours around half and nine tenths.

    A corpus that bears an arm's name has its look.
    """
    places, shares = _places(corpora)
    if not places:
        return plots.nothing("too few different documents or words")
    figure = plots.new(4.6)
    axis = figure.subplots()
    order = list(dict.fromkeys([*arm_order, *corpora]))
    for corpus, dots in places.items():
        style = look(corpus, order)
        axis.plot(*dots.T, style["marker"], color=style["color"], markersize=2.6, alpha=0.35, markeredgewidth=0)
    for corpus, dots in places.items():
        _contours(axis, dots, look(corpus, order))
    x, y = (f"direction {n} ({share:.1%} of the variance)" for n, share in enumerate(shares, 1))
    axis.set(xlabel=x, ylabel=y)
    plots.bare(axis, "both")
    empty = [corpus for corpus in corpora if corpus not in places]
    handles = [plots.key(wrapped(corpus, 34), **look(corpus, order)) for corpus in places]
    widths = {"around half": 1.6, "around nine tenths": 0.9}
    handles += [plots.key(label, linestyle="-", linewidth=width) for label, width in widths.items()]
    handles += [plots.key(wrapped("no documents: " + ", ".join(empty), 34), marker="x")] if empty else []
    plots.legend(figure, [], [], *handles)
    return figure


def _places(corpora: Mapping[str, Sequence[str]]) -> tuple[dict[str, np.ndarray], list[float]]:
    """Corpus -> (documents, 2), of a sample; the shares of variance of the two directions. Nothing of too few."""
    from sklearn.decomposition import PCA
    from sklearn.feature_extraction.text import TfidfVectorizer

    chosen: dict[str, list[str]] = {}
    for corpus, texts in corpora.items():
        kept = [text for text in texts if any(map(str.isalnum, text))]
        if kept:
            chosen[corpus] = random.Random(f"map/{corpus}").sample(kept, min(SHOWN, len(kept)))
    documents = [text for texts in chosen.values() for text in texts]
    if len(set(documents)) < 3:
        return {}, []
    points = TfidfVectorizer(token_pattern=r"(?u)\w+", sublinear_tf=True, max_features=20_000).fit_transform(documents)
    if min(points.shape) < 3:
        return {}, []
    fitted = PCA(2, svd_solver="arpack", random_state=0)
    found = fitted.fit_transform(points)
    largest = fitted.components_[range(2), np.abs(fitted.components_).round(6).argmax(axis=1)]
    # rounded, for the last bits may differ between machines
    found = (found * np.sign(largest)).round(5) + 0.0
    ends = np.cumsum([len(texts) for texts in chosen.values()])
    return dict(zip(chosen, np.split(found, ends[:-1]), strict=True)), fitted.explained_variance_ratio_.tolist()


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
        style = {"colors": style["color"], "linestyles": style["linestyle"], "linewidths": [0.9, 1.6]}
        axis.contour(x, y, heights, levels=levels, **style)


def describe_corpus_map(corpora: Mapping[str, Sequence[str]]) -> str:
    places, shares = _places(corpora)
    parts = []
    for corpus, texts in corpora.items():
        text = f"{corpus}: {len(places.get(corpus, []))} of {len(texts)} documents"
        if corpus in places:
            (x, y), (sx, sy) = places[corpus].mean(axis=0), places[corpus].std(axis=0)
            text += f", centre ({x:.3f}, {y:.3f}), standard deviation ({sx:.3f}, {sy:.3f})"
        parts.append(text)
    title = f" ({', '.join(f'{share:.1%}' for share in shares)} of the variance)" if shares else ""
    return plots.told(f"Documents in the two main directions of their words{title}", parts)
