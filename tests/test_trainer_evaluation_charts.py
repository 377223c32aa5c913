import re

import numpy as np

from trainer.evaluation.metrics import classification_metrics
from trainer.report.evaluation_charts import EvaluatedImages, evaluation_charts

CLASSES = ("covid", "normal")


def decision_curve(scores, hits):
    probabilities, labels = np.stack([scores, 1 - scores], axis=1), np.where(hits, 0, 1)
    metrics = classification_metrics(probabilities, labels, classes=CLASSES, positive="covid")
    images = EvaluatedImages(probabilities=probabilities, labels=labels, units=np.arange(len(hits)), metrics=metrics)
    return next(one for one in evaluation_charts(images) if one.title.startswith("Decision curve"))


def curve_of_model(drawn):
    return re.findall(r'<path class="line " style="--c:var\(--c0\)" d="([^"]*)"', str(drawn.chart.svg))[0]


def test_the_net_benefit_of_a_harmful_range_of_thresholds_is_not_bridged_by_a_line():
    # At thresholds from 0.05 to 0.4, all 40 negatives are called positive: the net benefit is down to -0.6.
    scores, hits = np.append(np.full(40, 0.41), 0.42), np.arange(41) == 40

    drawn = decision_curve(scores, hits)

    assert curve_of_model(drawn).count("M") == 2
    assert drawn.caption.endswith("; gaps of this model are below the axis")


def test_a_model_that_never_harms_has_one_line():
    drawn = decision_curve(np.append(np.full(20, 0.001), np.full(20, 0.999)), np.arange(40) >= 20)

    assert curve_of_model(drawn).count("M") == 1
    assert "gaps" not in drawn.caption
