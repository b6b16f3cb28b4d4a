"""A project's front door: `clipbench run`, `clipbench check` and `clipbench init`, in whatever repository they are called.

`run` is `pytest benchmarks` with the host's conftest.py files and pytest settings left out: the same options, the same exit codes.
"""

import argparse
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from clipbench.errors import ClipbenchError, UsageError, sanitize
from clipbench.paths import benchmarks
from clipbench.settings import FILE, NO_SETTINGS, Settings, find_settings

if TYPE_CHECKING:
    from clipbench.experiments import Experiment
    from clipbench.models.zoo import ModelSpec
    from clipbench.options import Options
    from clipbench.session import Session

EXAMPLES = """
examples:
  clipbench run                                             the embedded model, packaged pictures, no network
  clipbench run --model ViT-B/16 --device cuda              a real CLIP
  clipbench run --model acme.clip:load --dataset shop=data/shop
  clipbench run --baseline ci/base.json --update-baseline --reason "first release"
  clipbench run --baseline ci/base.json --require-all --junitxml clipbench.xml
  clipbench run -k zero_shot -x                             pytest's own options work, too (pytest --help)

What does not change stands in clipbench.toml, or in [tool.clipbench] of pyproject.toml: `clipbench init` writes one, `clipbench check`
says whether it is in order. Exit codes are pytest's: 0 passed, 1 failed, 2 interrupted, 4 usage.
"""
PICTURES = 2
WORKFLOWS = {"github": Path(".github/workflows/clipbench.yml"), "gitlab": Path("clipbench.gitlab-ci.yml")}


def run(arguments: Sequence[str]) -> int:
    """Run the benchmarks here with pytest; return its exit code."""
    if {"-h", "--help"} & set(arguments):
        print(_parser("run", "Run the benchmarks: `pytest benchmarks` without the host's conftest.py.").format_help())
        return 0
    import pytest

    alone = ["-c", os.devnull, "--rootdir", os.getcwd(), "--noconftest", "--import-mode=importlib"]
    return int(pytest.main([*alone, "-p", "clipbench.pytest_plugin", str(benchmarks()), *arguments]))


def _parser(command: str, description: str, settings: Settings = NO_SETTINGS) -> argparse.ArgumentParser:
    from clipbench.options import add_options

    parser = argparse.ArgumentParser(
        f"clipbench {command}",
        description=description,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser.add_argument, settings)
    return parser


def check(arguments: Sequence[str]) -> int:
    """Say whether settings, data, encoder and baseline are in order: two pictures and their texts through everything.

    Returns 0 where they are, 1 for a problem, each named in a line. Raises: UsageError for what cannot be meant.
    """
    from clipbench.options import Options, settings_of
    from clipbench.session import Session, resources_of

    settings = settings_of(arguments, Path.cwd())
    parser = _parser("check", "Say in seconds whether settings, data and encoder are in order.", settings)
    given = vars(parser.parse_args(arguments))
    # A baseline that is not there yet is no reason to stop here.
    given |= {"update_baseline": bool(given["baseline"]), "reason": "check" if given["baseline"] else ""}
    options = Options.from_arguments(given, Path.cwd(), settings)
    print(f"settings  {settings.path or f'none ({FILE} and [tool.clipbench] are looked for here and above)'}")
    problems: list[str] = []
    with closing(Session(options, resources_of(options))) as session:
        resources = session.resources
        print(f"device    {resources.device}, {resources.precision}, batch size {resources.batch_size}")
        for line, is_problem in (*_checked(session), *_idle(options), _baseline(options)):
            print(sanitize(line))
            problems += [line] if is_problem else []
    print(f"{len(problems)} problem(s)" if problems else "in order; next: clipbench run")
    return int(bool(problems))


def _checked(session: "Session") -> Iterator[tuple[str, bool]]:
    """A line for each data set and each model, and whether it is a problem."""
    from clipbench.embed.trace import TEXTS, pictures
    from clipbench.models.zoo import resolve

    options = session.options
    asked = list(_asked_data(options))
    for one, name in asked:
        try:
            dataset = session.dataset(one, name)
            classes = f", {len(dataset.classes):,} classes" if dataset.classes else ""
            yield f"data      {name} ({one.name}): {len(dataset):,} pictures{classes}", False
        except ClipbenchError as error:
            yield f"problem   data {name} ({one.name}): {error}", True
    for spec in resolve(options.models, options.pretrained, options.activation, options.model_args):
        started = time.perf_counter()
        try:
            encoder = session.embedder(spec).encoder
            images, texts = (
                encoder.encode_images(list(pictures()[:PICTURES])),
                encoder.encode_texts(list(TEXTS[:PICTURES])),
            )
            if images.shape != texts.shape:
                what = (
                    f"images have dim {images.shape[1]}, texts {texts.shape[1]}; a dual encoder gives both the same dim"
                )
                yield f"problem   model {spec.name}: {what}", True
                continue
            for one, name in asked:
                yield from _encoded(session, spec, one, name)
            yield f"model     {spec.name}: dim {images.shape[1]}, {time.perf_counter() - started:.1f} s", False
        except Exception as error:  # noqa: BLE001  # the boundary: somebody else's encoder may raise anything
            said = str(error) if isinstance(error, ClipbenchError) else f"{type(error).__name__}: {error}"
            yield f"problem   model {spec.name}: {said}", True


def _asked_data(options: "Options") -> Iterator[tuple["Experiment", str]]:
    """The data sets that somebody gave a folder for, with an experiment that reads each; one that several read alike once each."""
    from clipbench.experiments import all_experiments

    for one in all_experiments().values():
        if one.name in (options.experiments or (one.name,)):
            yield from ((one, name) for name in options.own_data(one.name))


def _encoded(session: "Session", spec: "ModelSpec", one: "Experiment", name: str) -> Iterator[tuple[str, bool]]:
    """Two pictures of a data set and their texts, encoded; only what is wrong is said."""
    from clipbench.data.folders import DEFAULT_TEMPLATES
    from clipbench.experiments import check_dims

    try:
        dataset = session.dataset(one, name)
    except ClipbenchError:
        return  # said before
    step = max(1, len(dataset) // PICTURES)
    items = dataset.items[::step][:PICTURES]
    templates = dataset.prompts or DEFAULT_TEMPLATES
    texts = [c for item in items for c in item.captions[:1]]
    texts += [t.replace("{}", dataset.classes[k]) for item in items for k in item.labels[:1] for t in templates[:1]]
    embedder = session.embedder(spec)
    images = embedder.images(items)
    yield from ((f"problem   data {name}: {broken}", True) for broken in images.broken)
    check_dims(embedder.encoder, images, embedder.texts(list(dict.fromkeys(texts)) or ["a photo"]))


def _idle(options: "Options") -> Iterator[tuple[str, bool]]:
    """What settings say of data sets that this session has not: most likely a name misspelt."""
    there = {(one.name, name) for one, name in _asked_data(options)}
    for floor in options.settings.floors:
        if floor.dataset not in options.datasets_of(floor.experiment):
            yield f"problem   floor of {floor.experiment} on {floor.dataset}: there is no such data set here", True
    for row in options.settings.judged_by().cutoffs:
        if (row.experiment, row.dataset) not in there:
            yield (
                f"problem   cut-off {row.name} of {row.experiment} on {row.dataset}: there is no such data set here",
                True,
            )
    names = {name for _, name in there}
    for name in options.settings.prompts:
        if name not in names:
            yield (
                f"problem   prompts of {name}: there is no such data set here ({', '.join(sorted(names)) or 'none'})",
                True,
            )


def _baseline(options: "Options") -> tuple[str, bool]:
    from clipbench.judge.baseline import read_base

    if options.baseline is None:
        return "baseline  none: numbers are held to floors and published values alone", False
    if not options.baseline.exists():
        return (
            f"baseline  {options.baseline} is not there yet; make it: clipbench run --update-baseline --reason TEXT",
            False,
        )
    try:
        base = read_base(options.baseline, "baseline")
    except ClipbenchError as error:
        return f"problem   baseline: {error}", True
    models = ", ".join(dict.fromkeys(result.model.name for result in base.run.results))
    return f"baseline  {options.baseline}: {len(base.run.results)} results of {models}", False


def init(arguments: Sequence[str]) -> int:
    """Write a commented clipbench.toml and a CI workflow for the repository here, and say what to do next. Nothing is replaced.

    Raises: UsageError where settings are there already.
    """
    parser = argparse.ArgumentParser(
        "clipbench init", description="Write clipbench.toml and a CI workflow for this repository."
    )
    parser.add_argument(
        "--ci", choices=(*WORKFLOWS, "none"), help="whose workflow (default: GitLab's beside a .gitlab-ci.yml)"
    )
    options = parser.parse_args(arguments)
    here = Path.cwd()
    if (found := find_settings(here)) is not None:
        raise UsageError(f"{found} is there already; `clipbench check` says whether it is in order")
    model = next(_encoders(here), "")
    (here / FILE).write_text(_settings_text(model), encoding="utf-8")
    print(f"wrote {FILE}: " + (f"your encoder is {model}" if model else "name your encoder in it"))
    ci = options.ci or ("gitlab" if (here / ".gitlab-ci.yml").exists() else "github")
    if ci != "none" and not (path := here / WORKFLOWS[ci]).exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(workflow(ci, here), encoding="utf-8")
        print(f"wrote {WORKFLOWS[ci]}" + (": include it in .gitlab-ci.yml" if ci == "gitlab" else ""))
    print("next:\n  clipbench check")
    print('  clipbench run --update-baseline --reason "first baseline"    # writes ci/DEVICE-PRECISION.json: commit it')
    print("  clipbench run                                                # is it still as good?")
    return 0


def workflow(ci: str, folder: Path) -> str:
    """Return the workflow of docs/ci.md under the marker `ci`, with the line that installs what lies in this folder."""
    guide = (Path(__file__).parent / "docs" / "ci.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"<!-- {ci} -->\n```yaml\n(.*?)```", guide, flags=re.DOTALL)
    own = "-r requirements.txt" if (folder / "requirements.txt").exists() else ""
    own = "-e ." if not own and any((folder / name).exists() for name in ("pyproject.toml", "setup.py")) else own
    head = folder / ".git" / "HEAD"
    if head.is_file() and head.read_text(encoding="utf-8", errors="replace").strip() == "ref: refs/heads/master":
        found = found.replace("branches: [main]", "branches: [master]")
    return str(found).replace("-r requirements.txt", own).replace("pip install  ", "pip install ")


def _encoders(folder: Path) -> Iterator[str]:
    """`module:Class` of each class of one's own with both methods of an encoder, where Python would import it from this folder."""
    for path in sorted(folder.glob("*.py")) + sorted(folder.glob("*/*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        for name, body in re.findall(r"^class (\w+)(.*?)(?=^\S|\Z)", text, flags=re.MULTILINE | re.DOTALL):
            if "def encode_images(" in body and "def encode_texts(" in body:
                yield f"{'.'.join(path.relative_to(folder).with_suffix('').parts)}:{name}"


def _settings_text(model: str) -> str:
    line = (
        f'model = ["{model}"]'
        if model
        else '# model = ["my_package.my_module:factory"]  # any object with encode_images and encode_texts'
    )
    return f"""# Settings of clipbench: every option of `clipbench run` is a key. `clipbench check` says whether they are in order.

{line}
precision = "fp32"
require-all = true  # what is skipped, inconclusive, or held to nothing fails
baseline = "ci/{{device}}-{{precision}}.json"  # ci/cpu-fp32.json, ci/nvidia-l4-fp32.json
# max-cosine-distance = 0.001  # no item's row may move further: for owners of an index
# tolerance = {{ acc1 = 0.02 }}  # the drop that is allowed; `clipbench power --items N` says what N items decide

# experiments = ["zero_shot", "retrieval", "speed"]  # these alone: a model of one domain is not held to the packaged pictures

# [dataset]  # class folders, metadata.jsonl, COCO's JSON, shards: it is found out what lies there
# shop = "data/shop"

# [prompts]
# shop = ["a product photo of a {{}}."]

# [[floor]]  # the least that a metric may be
# experiment = "zero_shot"
# dataset = "shop"
# metrics = ["acc1"]
# at_least = 0.85
# source = "what the shop's search needs"

# [[must_pass]]  # right in the base and wrong in the head: this item fails alone
# experiment = "zero_shot"
# dataset = "shop"
# metric = "acc1"
# items = ["dress/0001.jpg"]

# [[cutoff]]  # a cosine from which on the application takes the best candidate: precision and recall are judged there
# name = "show"
# experiment = "zero_shot"
# dataset = "shop"
# score = 0.24
"""
