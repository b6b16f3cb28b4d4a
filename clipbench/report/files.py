"""Writing a run's files: summary.md, summary.html and the figures, each whole or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from clipbench.data.dataset import Dataset
from clipbench.report.document import to_html, to_markdown
from clipbench.report.drawing import figures_of
from clipbench.report.ranking import by_experiment, ranking_blocks, ranking_file
from clipbench.report.ranking_figure import ranking_figure
from clipbench.report.summary import model_label, summary_blocks
from clipbench.result import Run, write_whole


def write_report(
    run: Run,
    folder: Path,
    datasets: Mapping[str, Dataset],
    shown: Mapping[str, Sequence[str]],
    problems: Sequence[str] = (),
) -> None:
    """Write the summary and the figures of a run into a folder.

    `datasets` by name give the pictures and captions of the figures; a data set that is not at hand leaves ids in their place.

    Raises: OSError when the folder cannot be written.
    """
    figures: dict[tuple[str, str, str], list[str]] = {}
    for result in run.results:
        for name, content in figures_of(result, datasets.get(result.dataset.name)):
            write_whole(folder / "figures" / name, content)
            key = (result.experiment, result.dataset.name, model_label(result.model))
            figures.setdefault(key, []).append(f"figures/{name}")
    for title, found in by_experiment(run):
        write_whole(folder / "figures" / ranking_file(title), ranking_figure(title, found))
    blocks = [*summary_blocks(run, figures, shown, problems), *ranking_blocks(run)]
    write_whole(folder / "summary.md", to_markdown(blocks))
    write_whole(folder / "summary.html", to_html(blocks, "clipbench summary"))
