"""Names: the models clipbench knows, and which of them a word on the command line means, with which weights and activation.

Imports neither torch nor open_clip, but for the tags, which open_clip keeps in no data file. The activation is right by construction:
known tags say it; OpenAI's spelling, OpenAI's archives and `-quickgelu` names mean QuickGELU; a checkpoint whose name leaves it open
demands --activation or the open_clip_config.json beside it.
"""

import csv
import json
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from clipbench.errors import ClipbenchError, UnknownModelError, UsageError, closest
from clipbench.models.grammar import EXPECTED, ModelWord, is_repository, parse_list, parse_model
from clipbench.paths import (
    LARGEST_SETTINGS_BYTES,
    expanded,
    fixtures,
    installed_file,
    open_data,
    read_json,
    read_text,
    zip_directory,
)

LITE = "lite"
LITE_IMAGE_SIZE, LITE_DIM = 224, 384
QUICKGELU_SUFFIX = "-quickgelu"

Source = Literal["lite", "tag", "path", "random", "factory", "hf-hub", "local-dir", "hf", "onnx", "embeddings"]


@dataclass(frozen=True)
class ZooModel:
    """One row of zoo.toml: an OpenAI model with its published card."""

    name: str
    open_clip: str
    hub: str
    study: bool
    params: int
    params_image: int
    params_text: int
    image_size: int
    context_length: int
    vocab_size: int
    embed_dim: int
    download_bytes: int
    openai_checkpoint_sha256: str
    source: str

    @property
    def card(self) -> dict[str, int]:
        """The published model card: metric name -> value."""
        names = ("params", "params_image", "params_text", "image_size", "context_length", "vocab_size", "embed_dim")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class ModelSpec:
    """One model to load: what it is called, where its weights come from, and which activation it gets and why.

    `activation` is "" where the architecture leaves no choice. `location`: what a source other than open_clip's tables reads:
    module:factory, a repository, a folder. `settings`: `--model-args` as JSON. `known_as`: the name under which references know it,
    where `name` is another. `word`: what `--model` takes to mean it alone, where that is not `name`.
    """

    name: str
    source: Source
    pretrained: str
    architecture: str = ""
    activation: str = ""
    why: str = ""
    location: str = ""
    settings: str = ""
    known_as: str = ""
    word: str = ""

    @property
    def label(self) -> str:
        """The name for people: model and weights."""
        return self.name if self.pretrained in ("lite", "factory", self.name) else f"{self.name} ({self.pretrained})"

    @property
    def arguments(self) -> dict[str, Any]:
        """What `--model-args` asks of the loader."""
        return dict(json.loads(self.settings)) if self.settings else {}

    @property
    def loader(self) -> str:
        """What loads it, as a run says it: an alias says which factory, since its name does not."""
        return f"factory {self.location}" if self.source == "factory" and self.name != self.location else self.source


@cache
def zoo() -> dict[str, ZooModel]:
    """Return the table of OpenAI models by their own spelling, in the order of zoo.toml."""
    return {row["name"]: ZooModel(**row) for row in _tables()["model"]}


@cache
def cards() -> dict[str, tuple[dict[str, int], str]]:
    """Return the expected card of every model that has one, with its source: metric name -> value, by model name."""
    lite = dict(_tables()["lite"])
    return {LITE: (lite, lite.pop("source"))} | {row.name: (row.card, row.source) for row in zoo().values()}


@dataclass(frozen=True)
class Profile:
    """What an architecture of open_clip costs: GFLOPs (two for each multiply-add) of one image and one text of full length."""

    image_size: int
    params_millions: float
    gflops: float


@cache
def profiles() -> dict[str, Profile]:
    """Return the cost of each architecture that open_clip has profiled, by its open_clip name.

    Source: mlfoundations/open_clip@89fb801f1e60 docs/model_profile.csv, carried over into fixtures/open_clip_profile.csv.
    """
    with (fixtures() / "open_clip_profile.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        row["model"]: Profile(int(row["image_size"]), float(row["params_millions"]), float(row["gflops"]))
        for row in rows
    }


@cache
def published_imagenet() -> dict[str, float]:
    """Return the published zero-shot accuracy on ImageNet-1k (a fraction) of each model with OpenAI's weights, by name.

    Source: fixtures/published/zero_shot.toml, the table of imagenet1k.
    """
    tables = tomllib.loads((fixtures() / "published" / "zero_shot.toml").read_text(encoding="utf-8"))["table"]
    values = next(t["values"] for t in tables if (t["dataset"], t["weights"]) == ("imagenet1k", "openai"))
    return {name: found["acc1"] for name, found in values.items()}


def known_models() -> list[dict[str, Any]]:
    """Return what `clipbench models` says of the models that have a name of their own, lite first. Nothing is fetched."""
    from clipbench.models.weights import is_cached

    rows: list[dict[str, Any]] = [{"name": LITE, "tag": None, "input": LITE_IMAGE_SIZE, "dim": LITE_DIM}]
    for row in zoo().values():
        file = f"{row.name.replace('/', '-').replace('@', '-')}.pt"
        address = f"https://openaipublic.azureedge.net/clip/models/{row.openai_checkpoint_sha256}/{file}"
        rows.append(
            {
                "name": row.name,
                "open_clip": row.open_clip,
                "tag": "openai",
                "params": row.params,
                "input": row.image_size,
                "dim": row.embed_dim,
                "gflops": profiles()[row.open_clip].gflops if row.open_clip in profiles() else None,
                "imagenet": published_imagenet().get(row.name),
                "download_bytes": row.download_bytes,
                "cached": is_cached({"hf_hub": row.hub, "url": address}),
                "study": row.study,
            }
        )
    return rows


def other_architectures() -> list[dict[str, Any]]:
    """Return what `clipbench models --all` says of every other architecture of open_clip, by name."""
    rows: list[dict[str, Any]] = []
    for name in sorted(set(open_clip_configs()) - {row.open_clip for row in zoo().values()}):
        cost = profiles().get(name)
        known = (
            {"input": cost.image_size, "params": round(cost.params_millions * 1e6), "gflops": cost.gflops}
            if cost
            else {}
        )
        rows.append({"name": name, "open_clip": name, **known})
    return rows


@cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("zoo.toml").read_text(encoding="utf-8"))


@cache
def open_clip_configs() -> dict[str, Path]:
    """Return open_clip's architecture files by name, read from its package without importing it (that takes seconds)."""
    folder = installed_file("open_clip", "model_configs")
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.json"))}


def has_quickgelu_variant(architecture: str) -> bool:
    """True for an architecture that open_clip has with GELU and with QuickGELU: the name alone does not say which."""
    return architecture + QUICKGELU_SUFFIX in open_clip_configs() and architecture in open_clip_configs()


_RANDOM = re.compile(r"random(:\d{1,9})?")
_PATTERN = re.compile(r"[*?\[]")
_BRINGS_WEIGHTS = "{option} {value} cannot be used with {name!r}, which brings its own weights; drop one"


def expand(words: Sequence[str]) -> list[ModelWord]:
    """Return the models that the values of `--model` mean: comma lists, `study`, `all` and lists in files written out.

    Raises: UsageError.
    """
    found: list[ModelWord] = []
    groups = {"all": list(zoo()), "study": [m.name for m in zoo().values() if m.study]}
    for one in (one for value in words for one in parse_model(value)):
        if one.kind == "list":
            try:
                found += parse_list(read_text(expanded(one.rest), LARGEST_SETTINGS_BYTES), one.rest)
            except UsageError:
                raise
            except ClipbenchError as error:
                raise UsageError(f"--model {one.rest}: {error}; expected a file of ARCH,TAG lines") from error
        elif one.alias and one.rest in groups:
            raise UsageError(f"--model {one.alias}={one.rest}: an alias names one model, and {one.rest} is several")
        else:
            found += [ModelWord("name", name) for name in groups.get(one.rest, ())] or [one]
    return found


def resolve(
    words: Sequence[str | ModelWord],
    pretrained: str | None = None,
    activation: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[ModelSpec, ...]:
    """Return what to load for the values of `--model`, each model once, in the order given. `arguments`: those of `--model-args`.

    Raises: UnknownModelError with the closest names; UsageError for combinations that cannot be meant, arguments that a loader does
    not take, and two models of one name.
    """
    asked = [one for word in words for one in (expand([word]) if isinstance(word, str) else [word])]
    found = [spec for one in asked for spec in _resolve_word(one, pretrained, activation)]
    specs = list(dict.fromkeys(with_arguments(spec, arguments or {}) for spec in found))
    if any(s.source == "path" and not s.word for s in specs) and len(specs) > 1:
        raise UsageError(
            f"--pretrained {pretrained} is one checkpoint, but {len(specs)} models were given "
            f"({', '.join(s.name for s in specs)}); give one --model"
        )
    unique: dict[str, ModelSpec] = {}
    for spec in specs:
        other = unique.setdefault(spec.name, spec)
        if other.pretrained != spec.pretrained or other.location != spec.location:
            both = f"{other.location or other.pretrained} and {spec.location or spec.pretrained}"
            raise UsageError(f"two models are called {spec.name} ({both}); give one of them a name: --model NAME=...")
    return tuple(unique.values())


def _resolve_word(word: ModelWord, pretrained: str | None, activation: str | None) -> list[ModelSpec]:
    """What one word means; a pattern of checkpoints is as many models."""
    if word.alias and (word.alias in (LITE, *zoo()) or word.alias in open_clip_configs()):
        raise UsageError(
            f"--model {word.alias}=...: {word.alias} is the name of a model that is known; choose another alias"
        )
    if word.kind == "name":
        weights = pretrained
        architecture, prefix = word.rest, word.alias
    elif word.kind == "open_clip":
        _refuse(word.rest, ("--pretrained", pretrained))
        architecture, weights = word.weights[0], word.weights[1] or None
        prefix = word.alias
    else:
        _refuse(word.rest, ("--pretrained", pretrained), ("--activation", activation))
        return [_elsewhere(word)]
    files = _matching(weights) if weights is not None and word.rest != LITE else []
    if not files:
        spec = _resolve_one(architecture, weights, activation)
        if word.kind == "name" and not word.alias:
            return [spec]
        said = Path(spec.pretrained).stem if spec.source == "path" else spec.pretrained
        name = word.alias or (f"{spec.name}@{said}" if weights is not None else spec.name)
        said = f"open_clip:{architecture}" + (f"@{weights}" if weights else "")
        return [_renamed(spec, name, f"{word.alias}={said}" if word.alias else said)]
    specs = [_resolve_one(architecture, str(file), activation) for file in files]
    names = [f"{prefix or spec.name}@{file.stem}" for spec, file in zip(specs, files, strict=True)]
    called = [f"{name}=" if word.alias else "" for name in names]
    return [
        _renamed(spec, name, f"{alias}open_clip:{architecture}@{file}")
        for spec, name, alias, file in zip(specs, names, called, files, strict=True)
    ]


def _renamed(spec: ModelSpec, name: str, word: str) -> ModelSpec:
    if spec.name == name:
        return spec
    word = f"{name}={LITE}" if spec.source == "lite" else word
    return replace(spec, name=name, known_as=spec.name, word=word)


def _refuse(name: str, *options: tuple[str, str | None]) -> None:
    """Raises: UsageError for an option about weights beside a model that has its own."""
    for option, value in options:
        if value is not None:
            raise UsageError(_BRINGS_WEIGHTS.format(option=option, value=value, name=name))


def _elsewhere(word: ModelWord) -> ModelSpec:
    """A factory, a repository or a folder. Raises: UsageError where there is no such folder, or what is given is neither."""
    if word.kind == "factory":
        name = word.alias or word.rest
        return ModelSpec(
            name, "factory", "factory", location=word.rest, word=f"{name}={word.rest}" if word.alias else ""
        )
    location = word.rest
    if word.kind in ("hf", "hf-hub") and is_repository(location) and not Path(location).is_dir():
        called = word.weights[0]
    else:
        folder = expanded(location)
        if not folder.is_dir():
            raise UsageError(
                f"--model {word.kind}:{location}: there is no folder {folder}; expected {EXPECTED[word.kind]}"
            )
        location, called = str(folder.resolve()), folder.resolve().name
    said = f"{word.kind}:{word.rest}"
    kind: Any = word.kind  # a KIND: "name", "list" and "factory" were seen to
    name = word.alias or f"{kind}:{called}"
    return ModelSpec(name, kind, said, location=location, word=f"{word.alias}={said}" if word.alias else said)


def _matching(pretrained: str) -> list[Path]:
    """The checkpoints that a pattern names, in their natural order; none for what is no pattern. Raises: UsageError for none found."""
    if not _PATTERN.search(pretrained) or expanded(pretrained).is_file():
        return []
    path = expanded(pretrained)
    if _PATTERN.search(str(path.parent)):
        raise UsageError(f"--pretrained {pretrained}: a pattern names files of one folder; expected FOLDER/*.pt")
    found = [file for file in path.parent.glob(path.name) if file.is_file()]
    if not found:
        beside = ", ".join(sorted(file.name for file in path.parent.glob("*"))[:5]) or "nothing"
        raise UsageError(f"--pretrained {pretrained} matches no file; {path.parent} holds {beside}")
    return sorted(found, key=lambda file: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", file.name)])


_PREPROCESS = ("image_mean", "image_std", "image_interpolation", "image_resize_mode")
OPEN_CLIP_ARGUMENTS = ("force_image_size", "force_context_length", *_PREPROCESS)
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("tag", "path", "random", "hf-hub", "local-dir"), OPEN_CLIP_ARGUMENTS),
    "hf": ("max_length", "lowercase"),
}
"""What `--model-args` may set, by source; a factory is called with whatever is given."""

_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "image_interpolation": ("bicubic", "bilinear", "nearest"),
    "image_resize_mode": ("shortest", "longest", "squash"),
    "lowercase": (True, False),
}


def with_arguments(spec: ModelSpec, arguments: Mapping[str, Any]) -> ModelSpec:
    """Return the spec with what `--model-args` asks of its loader. Published values are about a model as it was trained, so
    they do not speak of it any more.

    Raises: UsageError for what its loader does not take, with what it takes.
    """
    if not arguments:
        return spec
    for key, value in arguments.items() if spec.source != "factory" else ():
        known = ARGUMENTS.get(spec.source, ())
        if key not in known:
            takes = f"takes {closest(key, known) or ', '.join(known)}" if known else "takes none"
            raise UsageError(f"--model-args {key}={value}: the loader of {spec.name} ({spec.source}) {takes}")
        _check_argument(key, value)
    settings = json.dumps(dict(arguments), sort_keys=True)
    return replace(spec, settings=settings, known_as=f"{spec.known_as or spec.name} with {settings}")


def _check_argument(key: str, value: Any) -> None:
    expected, fits = "a whole number above 0", type(value) is int and value > 0
    if key in _CHOICES:
        expected, fits = f"one of {', '.join(map(str, _CHOICES[key]))}", value in _CHOICES[key]
    elif key in ("image_mean", "image_std"):
        is_list = isinstance(value, list) and len(value) == 3
        expected, fits = "a list of 3 numbers", is_list and all(type(n) in (int, float) for n in value)
    if not fits:
        raise UsageError(f"--model-args {key}={value}: expected {expected}")


def _resolve_one(name: str, pretrained: str | None, activation: str | None) -> ModelSpec:
    if name == LITE:
        _refuse(name, ("--pretrained", pretrained), ("--activation", activation))
        return ModelSpec(name=LITE, source="lite", pretrained="lite")
    architecture = _architecture(name)
    bare = architecture.removesuffix(QUICKGELU_SUFFIX)
    zoo_row = next((model for model in zoo().values() if model.open_clip == bare), None)
    spec = ModelSpec(
        name=zoo_row.name if zoo_row else architecture,
        source="tag",
        pretrained=pretrained or "",
        architecture=bare if zoo_row else architecture,
    )
    if pretrained == "":
        raise UsageError("--pretrained got an empty value; give a tag, a checkpoint file, or random[:SEED]")
    if pretrained is None:
        return _with_tag(replace(spec, pretrained="openai" if zoo_row else _only_tag(architecture)), activation)
    if _RANDOM.fullmatch(pretrained):
        spec = replace(spec, source="random", pretrained=pretrained if ":" in pretrained else "random:0")
        return _with_activation(spec, activation, *_activation_by_name(spec.architecture, bool(zoo_row)))
    if any(character in pretrained for character in "/\\."):  # a tag is one bare word; a file beside us is ./NAME
        return _with_path(spec, name, pretrained, activation)
    return _not_against_its_name(_with_tag(spec, activation), name)


def _architecture(name: str) -> str:
    """The open_clip configuration that a name means. Raises: UnknownModelError."""
    if name in zoo():
        return zoo()[name].open_clip
    if name in open_clip_configs():
        return name
    known = [LITE, "study", "all", *zoo(), *open_clip_configs()]
    near = closest(name, known) or ", ".join([LITE, *zoo()])
    raise UnknownModelError(
        f"unknown model {name!r}; closest: {near}. `clipbench models` lists all; your own encoder is package.module:factory"
    )


def _with_path(spec: ModelSpec, given: str, pretrained: str, activation: str | None) -> ModelSpec:
    path = expanded(pretrained)
    try:
        is_file = path.is_file()
    except OSError as error:
        raise UsageError(f"--pretrained {pretrained[:80]} cannot be a path: {error}") from error
    if not is_file:
        kind = "a folder, not a file" if path.is_dir() else "not there"
        raise UsageError(f"--pretrained {path} is {kind}; give a checkpoint file, a tag, or random[:SEED]")
    spec = replace(spec, source="path", pretrained=str(path))
    two = has_quickgelu_variant(spec.architecture.removesuffix(QUICKGELU_SUFFIX))
    beside = checkpoint_config(path)
    if is_torchscript(path):
        if activation == "gelu":
            raise UsageError(
                f"--activation gelu: {path} is an OpenAI archive, which was trained with QuickGELU; drop the option"
            )
        return replace(spec, activation="quickgelu", why="an OpenAI archive")
    if activation:
        return _with_activation(spec, activation, "", "")
    if beside:
        found = "quickgelu" if beside["model_cfg"].get("quick_gelu") else "gelu"
        spec = replace(spec, activation=found if two else "", why="open_clip_config.json beside the checkpoint")
        return _not_against_its_name(spec, given)
    if given.endswith(QUICKGELU_SUFFIX):
        return replace(spec, activation="quickgelu", why=f"the name {given}")
    if given in zoo():
        return replace(spec, activation="quickgelu", why=f"{given} is OpenAI's spelling")
    if two:
        raise UsageError(
            f"--model {given} --pretrained {path}: this architecture exists with GELU and with QuickGELU and the name does "
            f"not say which these weights were trained with; add --activation quickgelu (OpenAI's weights and their "
            f"fine-tunes, dfn2b, metaclip) or --activation gelu (laion, datacomp)"
        )
    return _with_activation(spec, None, *_activation_by_name(spec.architecture, False))


def _not_against_its_name(spec: ModelSpec, given: str) -> ModelSpec:
    """The spec, unless its name says QuickGELU and what is known of its weights says GELU. Raises: UsageError."""
    openai_only = given in zoo() and given not in open_clip_configs()  # RN50 is both spellings: it says nothing
    if spec.activation == "gelu" and (given.endswith(QUICKGELU_SUFFIX) or (openai_only and spec.source == "path")):
        raise UsageError(
            f"--model {given} means QuickGELU, but {spec.why} says that {spec.pretrained} was trained with GELU; use the name "
            f"{spec.architecture.removesuffix(QUICKGELU_SUFFIX)}, or say which with --activation"
        )
    return spec


def _with_tag(spec: ModelSpec, activation: str | None) -> ModelSpec:
    if spec.pretrained == "openai" and spec.name in zoo():
        trained, why = "quickgelu", "the openai tag"
    else:
        trained, why = _activation_of_tag(spec.architecture, spec.pretrained)
    if activation and activation != trained:
        raise UsageError(
            f"--activation {activation}: the weights {spec.pretrained!r} of {spec.name} were trained with "
            f"{trained or 'the only activation this architecture has'}; drop the option"
        )
    return replace(spec, activation=trained, why=why)


def _with_activation(spec: ModelSpec, activation: str | None, default: str, why: str) -> ModelSpec:
    if activation and not has_quickgelu_variant(spec.architecture.removesuffix(QUICKGELU_SUFFIX)):
        raise UsageError(f"--activation {activation}: {spec.name} has only one activation; drop the option")
    return replace(spec, activation=activation or default, why="--activation" if activation else why)


def _activation_by_name(architecture: str, is_openai: bool) -> tuple[str, str]:
    if is_openai:
        return "quickgelu", "an OpenAI architecture"
    if architecture.endswith(QUICKGELU_SUFFIX):
        return "quickgelu", f"the name {architecture}"
    return ("gelu", f"the name {architecture}") if has_quickgelu_variant(architecture) else ("", "")


def _activation_of_tag(architecture: str, tag: str) -> tuple[str, str]:
    """The activation open_clip states for a tag. Imports open_clip: its tags stand in no data file.

    Raises: UsageError when the architecture has no such tag.
    """
    import open_clip

    known = open_clip.list_pretrained_tags_by_model(architecture)
    configuration = open_clip.get_pretrained_cfg(architecture, tag)
    if not configuration:
        near = closest(tag, known) or ", ".join(known) or "none"
        raise UsageError(
            f"--pretrained {tag}: {architecture} has no such weights; closest: {near}. A checkpoint file is given by its path"
        )
    if not has_quickgelu_variant(architecture.removesuffix(QUICKGELU_SUFFIX)):
        return "", ""
    return ("quickgelu" if configuration.get("quick_gelu") else "gelu"), f"open_clip's table for the tag {tag}"


def _only_tag(architecture: str) -> str:
    """The tag of an architecture that has one. Raises: UsageError listing the tags, or the lack of any."""
    import open_clip

    known = open_clip.list_pretrained_tags_by_model(architecture)
    if len(known) == 1:
        return str(known[0])
    choice = f"one of {', '.join(known)}" if known else "PATH or random (open_clip has no weights for it)"
    raise UsageError(f"--model {architecture} needs --pretrained: {choice}")


def is_torchscript(path: Path) -> bool:
    """True for a TorchScript archive (OpenAI's container), by its table of contents; nothing in it is read or run."""
    try:
        with open_data(path, sys.maxsize) as file:
            return has_code(zip_directory(file).namelist())
    except ValueError:
        return False


def has_code(names: Sequence[str]) -> bool:
    """True for the records of a TorchScript archive."""
    return any(n.endswith("/constants.pkl") for n in names) and any("/code/" in n for n in names)


def checkpoint_config(path: Path) -> dict[str, Any] | None:
    """Return the open_clip_config.json beside a checkpoint, None where there is none. Raises: UsageError for one that is malformed."""
    file = path.parent / "open_clip_config.json"
    if not file.is_file():
        return None
    try:
        entry = read_json(file, LARGEST_SETTINGS_BYTES)
    except ClipbenchError as error:
        raise UsageError(f"{file} cannot be read as JSON: {error}; mend or remove it") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("model_cfg"), dict):
        raise UsageError(f"{file} has no object `model_cfg`; mend it (open_clip writes it) or remove it")
    preprocess = entry.get("preprocess_cfg", {})
    if not isinstance(preprocess, dict):
        raise UsageError(f"{file}: preprocess_cfg is no object; mend it (open_clip writes it) or remove it")
    for key in ("interpolation", "resize_mode"):
        values = _CHOICES[f"image_{key}"]
        if preprocess.get(key, values[0]) not in values:
            raise UsageError(f"{file}: preprocess_cfg.{key} = {preprocess[key]!r}; expected one of {', '.join(values)}")
    for key in ("mean", "std"):
        numbers = preprocess.get(key, [0.5])
        if not isinstance(numbers, list) or not all(isinstance(n, int | float) for n in numbers):
            raise UsageError(f"{file}: preprocess_cfg.{key} = {numbers!r}; expected a list of numbers")
    return entry
