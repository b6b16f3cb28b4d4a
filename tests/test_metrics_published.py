"""Metrics against the implementations that published values came from: clip_benchmark and scikit-learn, to 1e-6."""

import numpy as np
import pytest
from fakes import confusion

from clipbench.metrics import (
    average_precision,
    hits_at,
    label_ranks,
    per_class_recall,
    retrieval,
)


def unit_rows(rng, n, dim=16):
    rows = rng.normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def retrieval_case():
    rng = np.random.default_rng(11)
    images = unit_rows(rng, 60)
    text_image = np.repeat(np.arange(60), 5)
    texts = images[text_image] + rng.normal(scale=0.3, size=(300, 16)).astype(np.float32)
    return images, texts / np.linalg.norm(texts, axis=1, keepdims=True), text_image


@pytest.mark.parametrize("k", [1, 5, 10])
def test_retrieval_recall_is_that_of_clip_benchmark(retrieval_case, k):
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    import torch

    images, texts, text_image = retrieval_case
    found = retrieval(images, texts, text_image)
    scores = torch.from_numpy(texts @ images.T)
    positive = torch.zeros(scores.shape, dtype=torch.bool)
    positive[torch.arange(len(texts)), torch.from_numpy(text_image)] = True
    for ours, expected in (
        (found.text_to_image.ranks, theirs.recall_at_k(scores, positive, k)),
        (found.image_to_text.ranks, theirs.recall_at_k(scores.T, positive.T, k)),
    ):
        assert hits_at(ours, k).mean() > 0.1
        assert hits_at(ours, k).mean() == pytest.approx((expected > 0).float().mean().item(), abs=1e-6)


@pytest.fixture(scope="module")
def classification_case():
    rng = np.random.default_rng(12)
    labels = rng.integers(0, 9, size=200)
    scores = rng.normal(size=(200, 10)).astype(np.float32)
    scores[np.arange(200), labels] += 1
    return scores, labels


def test_accuracy_is_that_of_clip_benchmark(classification_case, monkeypatch):
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    import torch

    # clip_benchmark 1.6.2 calls float() on an array of one number, which numpy 2.4 refuses.
    monkeypatch.setattr(theirs, "float", lambda array: array.item(), raising=False)
    scores, labels = classification_case
    expected = theirs.accuracy(torch.from_numpy(scores), torch.from_numpy(labels), topk=(1, 5))
    ranks = label_ranks(scores, labels)
    assert [hits_at(ranks, k).mean() for k in (1, 5)] == pytest.approx(expected, abs=1e-6)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_recall_and_confusion_are_those_of_scikit_learn(classification_case):
    theirs = pytest.importorskip("sklearn.metrics")
    scores, labels = classification_case
    picked = scores.argmax(axis=1)
    recall = per_class_recall(hits_at(label_ranks(scores, labels), 1), labels, 10)
    assert recall.values.mean() == pytest.approx(theirs.balanced_accuracy_score(labels, picked), abs=1e-6)
    expected = theirs.confusion_matrix(labels, picked, labels=range(10))
    assert confusion(scores, labels) == expected.tolist()


def test_average_precision_is_that_of_scikit_learn_and_clip_benchmark():
    theirs = pytest.importorskip("sklearn.metrics")
    also_theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    import torch

    rng = np.random.default_rng(13)
    scores, relevant = rng.normal(size=(150, 6)).astype(np.float32), rng.random((150, 6)) < 0.2
    ours = average_precision(scores, relevant).values
    assert ours.tolist() == pytest.approx(theirs.average_precision_score(relevant, scores, average=None), abs=1e-6)
    per_class = also_theirs.average_precision_per_class(torch.from_numpy(scores), torch.from_numpy(relevant))
    assert ours.tolist() == pytest.approx(per_class.tolist(), abs=1e-6)
