from .bars import histogram as histogram, ranked as ranked
from .charts import (
    LABELS as LABELS,
    Along as Along,
    accuracy_axis as accuracy_axis,
    accuracy_chart as accuracy_chart,
    baselines as baselines,
    front as front,
    front_chart as front_chart,
    lines_chart as lines_chart,
    loss_charts as loss_charts,
    selection_chart as selection_chart,
)
from .curves import RUNS as RUNS, held_out_charts as held_out_charts, training_charts as training_charts
from .plot import (
    STYLE as STYLE,
    Axis as Axis,
    Chart as Chart,
    Mark as Mark,
    Series as Series,
    axis as axis,
    log_axis as log_axis,
    stand_alone as stand_alone,
)
