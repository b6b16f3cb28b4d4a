"""Slow, obvious re-implementations: one loop a sentence, no numpy tricks, ties against the model by comparing every pair."""

from fractions import Fraction
from itertools import pairwise
from math import comb


def text_to_image_hits(similarity):
    n = len(similarity)
    return [all(similarity[i][i] > similarity[i][j] for j in range(n) if j != i) for i in range(n)]


def image_to_text_hits(similarity):
    n = len(similarity)
    return [all(similarity[i][i] > similarity[j][i] for j in range(n) if j != i) for i in range(n)]


def margins(similarity):
    n = len(similarity)
    wrong = [
        [similarity[i][j] for j in range(n) if j != i] + [similarity[j][i] for j in range(n) if j != i]
        for i in range(n)
    ]
    return [similarity[i][i] - max(wrong[i]) for i in range(n)]


def label_ranks(scores, labels):
    return [
        sum(score >= row[label] for c, score in enumerate(row) if c != label)
        for row, label in zip(scores, labels, strict=True)
    ]


def per_class_recall(hits, labels):
    recall = {}
    for c in sorted(set(labels)):
        of_class = [bool(hit) for hit, label in zip(hits, labels, strict=True) if label == c]
        recall[c] = sum(of_class) / len(of_class)
    return recall


def confusion_matrix(scores, labels, n_classes):
    counts = [[0] * n_classes for _ in range(n_classes)]
    for row, label in zip(scores, labels, strict=True):
        others = [c for c in range(n_classes) if c != label]
        best = max(others, key=lambda c: row[c], default=label)
        counts[label][label if not others or row[label] > row[best] else best] += 1
    return counts


def average_precision(scores, relevant):
    """One class: the precision at each relevant image, every tied irrelevant image counted as ranked before it."""
    found = sorted((s for s, r in zip(scores, relevant, strict=True) if r), reverse=True)
    wrong = [s for s, r in zip(scores, relevant, strict=True) if not r]
    precisions = [(k + 1) / (k + 1 + sum(w >= score for w in wrong)) for k, score in enumerate(found)]
    return sum(precisions) / len(precisions)


def retrieval_ranks(similarity, text_image):
    """`similarity`: (texts, images). Ranks of each text's image, and of each image's best text among others' texts."""
    images = range(len(similarity[0]))
    texts = range(len(similarity))
    of_texts = [
        sum(similarity[t][i] >= similarity[t][text_image[t]] for i in images if i != text_image[t]) for t in texts
    ]
    of_images = []
    for i in images:
        best = max(similarity[t][i] for t in texts if text_image[t] == i)
        of_images.append(sum(similarity[t][i] >= best for t in texts if text_image[t] != i))
    return of_texts, of_images


def taken_for(scores, right, k):
    """The first k candidates: wrong ones in their order, the best of `right` behind all wrong ones that tie; and its margin."""
    ranked = sorted((c for c in range(len(scores)) if c not in right), key=lambda c: (-scores[c], c))
    own = max(right, key=lambda c: scores[c])
    rank = sum(scores[c] >= scores[own] for c in ranked)
    return [*ranked[:rank], own, *ranked[rank:]][:k], scores[own] - scores[ranked[0]]


def nearest(similarity, k, tie):
    """The k best rows of each query, best first; where the next score is no further than `tie`, the lower number first."""
    tops = []
    for scores in similarity:
        order = sorted(range(len(scores)), key=lambda row: -scores[row])
        group = {order[0]: 0}
        for better, row in pairwise(order):
            group[row] = group[better] + (scores[better] - scores[row] > tie)
        tops.append(sorted(order, key=lambda row: (group[row], row))[:k])
    return tops


def ranks_of_own(similarity, own, tie):
    """How many rows other than a query's own score as high, less `tie`."""
    return [
        sum(score >= scores[right] - tie for row, score in enumerate(scores) if row != right)
        for scores, right in zip(similarity, own, strict=True)
    ]


def fair_flips_tail(at_least, flips):
    """P(at least so many of `flips` fair coin flips), exactly."""
    return float(Fraction(sum(comb(flips, k) for k in range(at_least, flips + 1)), 2**flips))


def trinomial(n, p_lost, p_gained):
    """Every (lost, gained) of n items with its chance."""
    for lost in range(n + 1):
        for gained in range(n + 1 - lost):
            ways = comb(n, lost) * comb(n - lost, gained)
            chance = ways * p_lost**lost * p_gained**gained * (1 - p_lost - p_gained) ** (n - lost - gained)
            yield lost, gained, chance
