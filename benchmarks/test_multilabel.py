"""Multi-label data of your own: how well each class's text ranks the images that show it; --dataset NAME=PATH."""

import pytest

pytestmark = pytest.mark.experiment("multilabel")


def test_mean_average_precision_is_at_least_its_floor(subject, dataset):
    """Where a floor is stated for this model and data set; else it is measured and shown."""
    subject.require("multilabel", dataset=dataset)
