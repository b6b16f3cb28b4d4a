"""What a value of `--model` says, before any name is looked up: the one grammar of models. Pure: nothing is read, nothing imported.

    VALUE = [NAME=]KIND:REST | [NAME=]PLAIN | PLAIN,PLAIN,... | FILE.txt

KIND is one of KINDS; `package.module:factory` is plain. NAME is an alias: what the model is called in every result, and so what it is
paired by with another run. It ends at the first "=" and holds no "/" or ":", so a path with "=" in it needs no alias. What has an
alias or a KIND is one model: its commas are its own. FILE.txt lists models, one a line.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from clipbench.errors import UsageError, closest

Kind = Literal["open_clip", "hf-hub", "local-dir", "hf", "onnx", "embeddings"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_ALIAS = re.compile(r"([A-Za-z0-9][\w.+@-]*)=(.*)", re.DOTALL)
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")


@dataclass(frozen=True)
class ModelWord:
    """One model as it was asked for: where it comes from, and under which alias ("" where there is none).

    `kind`: a KIND, "factory" (`rest` is module:factory), "list" (a file of models) or "name" (`rest` is to be looked up).
    """

    kind: Kind | Literal["factory", "list", "name"]
    rest: str
    alias: str = ""

    @property
    def weights(self) -> tuple[str, str]:
        """`rest` at its first "@": what is loaded, and its tag, file or revision ("" where none is said)."""
        what, _, weights = self.rest.partition("@")
        return what, weights


def parse_model(value: str) -> tuple[ModelWord, ...]:
    """Return the models that one value of `--model` means, in its order. Raises: UsageError for one that has no meaning."""
    found = _ALIAS.fullmatch(value.strip())
    alias, rest = found.groups() if found else ("", value.strip())
    kind, colon, after = rest.partition(":")
    if colon and kind in KINDS:
        if not after.strip():
            raise UsageError(f"--model {value}: nothing stands behind {kind}:; expected {EXPECTED[kind]}")
        return (ModelWord(kind, after.strip(), alias),)
    if found:
        return (_plain(rest, value, alias),)
    return tuple(_plain(word.strip(), value, "") for word in value.split(","))


def _plain(word: str, value: str, alias: str) -> ModelWord:
    """A name, a factory, or a file of models."""
    if not word:
        raise UsageError(f"--model {value!r} holds an empty name; see `clipbench models` for the names")
    kind, colon, _ = word.partition(":")
    if alias and "," in word:
        raise UsageError(f"--model {value}: an alias names one model; give --model once for each")
    if not alias and ("=" in word or (colon and kind in KINDS)) and "," in value:
        raise UsageError(f"--model {value}: a comma list holds plain names alone; give --model once for each")
    if _FACTORY.fullmatch(word):
        return ModelWord("factory", word, alias)
    if word.endswith(".txt"):
        if alias:
            raise UsageError(f"--model {value}: an alias names one model, and {word} lists several; write NAME= in it")
        return ModelWord("list", word)
    if colon:
        raise UsageError(
            f"--model {value}: {kind!r} is no kind of model ({closest(kind, KINDS) or ', '.join(KINDS)}), and "
            f"{word!r} no package.module:factory"
        )
    if "=" in word:
        raise UsageError(
            f"--model {value}: {word.partition('=')[0]!r} is no alias; expected letters, digits, . _ + @ -"
        )
    return ModelWord("name", word, alias)


EXPECTED: dict[str, str] = {
    "open_clip": "open_clip:ARCH@TAG, ARCH@FILE or ARCH@random[:SEED]",
    "hf-hub": "hf-hub:ORG/REPO[@REVISION], a repository with open_clip_config.json",
    "local-dir": "local-dir:FOLDER with open_clip_config.json and safetensors weights",
    "hf": "hf:ORG/REPO[@REVISION] or hf:FOLDER, as transformers saves a CLIP or SigLIP model",
    "onnx": "onnx:FOLDER with vision_model.onnx, text_model.onnx, tokenizer.json and preprocessor_config.json",
    "embeddings": "embeddings:FOLDER with images.npy, image_ids.txt, texts.npy and texts.txt",
}
"""What stands behind each KIND."""


def is_repository(rest: str) -> bool:
    """Return whether it is ORG/REPO[@REVISION] of a hub, as against a folder."""
    return _REPOSITORY.fullmatch(rest) is not None


def parse_list(text: str, where: str) -> tuple[ModelWord, ...]:
    """Return the models of a file: `ARCH,TAG` a line as CLIP_benchmark's models.txt has them, or what `--model` takes.

    Lines that are blank or begin with "#" are skipped. `where` names the file.

    Raises: UsageError with the line; for a file without a model.
    Source: LAION-AI/CLIP_benchmark@48de38c clip_benchmark/cli.py (get_model_collection_from_file).
    """
    words: list[ModelWord] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        architecture, comma, tag = (part.strip() for part in line.partition(","))
        if comma and "=" not in line and ":" not in architecture:
            if not architecture or not tag or "," in tag:
                raise UsageError(f"{where}:{number} is {line!r}; expected ARCH,TAG or what --model takes")
            words.append(ModelWord("open_clip", f"{architecture}@{tag}"))
            continue
        try:
            found = parse_model(line)
        except UsageError as error:
            raise UsageError(f"{where}:{number}: {error}") from error
        if any(word.kind == "list" for word in found):
            raise UsageError(f"{where}:{number} names another list, {line}; write its lines here")
        words += found
    if not words:
        raise UsageError(f"{where} names no model; expected ARCH,TAG on each line")
    return tuple(words)


def parse_arguments(values: Iterable[str]) -> dict[str, Any]:
    """Return the settings of `--model-args k=v`, each value read as JSON where it is some, else as text; split at the first "=".

    Raises: UsageError for one that is not k=v, or is given twice.
    """
    found: dict[str, Any] = {}
    for pair in values:
        key, equals, value = pair.partition("=")
        if not (equals and key.isidentifier() and value):
            raise UsageError(f"--model-args {pair}: expected KEY=VALUE, for example force_image_size=336")
        if key in found:
            raise UsageError(f"--model-args {key} is given twice; drop one")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
