"""Writing a run's files: summary.md, summary.html and one PNG a matrix, each whole or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from clipbench.data.dataset import Dataset
from clipbench.errors import ClipbenchError
from clipbench.report.document import to_html, to_markdown
from clipbench.report.figures import figure_name, matrix_figure
from clipbench.report.summary import model_label, summary_blocks
from clipbench.result import Result, Run, write_whole


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
    figures: dict[tuple[str, str], list[str]] = {}
    for result in run.results:
        if "similarity" in result.arrays and len(result.items.ids) == len(result.arrays["similarity"]):
            name = figure_name(result.experiment, model_label(result.model))
            write_whole(folder / "figures" / name, _matrix(result, datasets.get(result.dataset.name)))
            figures[(result.experiment, model_label(result.model))] = [f"figures/{name}"]
    blocks = summary_blocks(run, figures, shown, problems)
    write_whole(folder / "summary.md", to_markdown(blocks))
    write_whole(folder / "summary.html", to_html(blocks, "clipbench summary"))


def _matrix(result: Result, dataset: Dataset | None) -> bytes:
    captions, pictures = {}, {}
    for item in dataset.items if dataset and dataset.fingerprint == result.dataset.fingerprint else ():
        captions[item.id] = item.captions[0]
        try:
            pictures[item.id] = item.image.open()
        except ClipbenchError:
            continue  # the id stands in for a picture that cannot be opened any more
    title = f"{result.experiment}: {model_label(result.model)}, cosine of texts (rows) and images (columns)"
    return matrix_figure(result.arrays["similarity"], result.items.ids, captions, pictures, title)
