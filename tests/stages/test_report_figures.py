"""How figures look, whatever is in them."""

import pytest
from matplotlib.figure import Figure as Canvas

from raml_ray.stages import report_figures


@pytest.mark.parametrize(
    "labels", [["one"], ["one", "two", "three"], ["a name that is as long as names may get", "two", "three"]]
)
def test_a_legend_stands_under_what_its_axis_says_and_names_every_line(labels: list[str]) -> None:
    with report_figures.styled():
        canvas = Canvas(figsize=(4, 3))
        axis = canvas.subplots()
        for height, label in enumerate(labels):
            axis.errorbar([0, 1], [height, height], [0.1, 0.1], marker="o", label=label)
        axis.set(xlabel="layer")
        axis.legend(fontsize=7)
        report_figures.finished("name", "Title", "Caption.", canvas, [{"x": 1}])
        canvas.draw_without_rendering()
    legend, ticks = axis.get_legend(), axis.xaxis.get_tightbbox()
    assert legend is not None and ticks is not None and legend.get_visible()
    assert [text.get_text() for text in legend.get_texts()] == labels
    assert legend.get_window_extent().y1 <= ticks.y0
    assert legend.get_window_extent().y0 >= 0
    assert axis.bbox.height > 72
