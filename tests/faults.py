"""What the gate says of degraded models: `python tests/faults.py` writes the README's table of faults.

A model is measured as it is and with each fault, and the two runs are compared. Without options: the embedded model and a
ViT-B/32 with random weights, every fault, packaged images, no network. Another model:
`python tests/faults.py --model RN50 --pretrained openai --fault bf16 --results out/`.
"""

import argparse
import re
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import QuickGELU
from PIL import Image
from torch import nn

from clipbench.embed.trace import trace_of
from clipbench.errors import ClipbenchError, UsageError, closest
from clipbench.experiments import experiment
from clipbench.judge.compare import compare_runs
from clipbench.judge.tolerances import read_rules
from clipbench.judge.trace import STAGES, compare_traces, first_moved
from clipbench.models import load_encoder
from clipbench.models.checkpoint import weights_sha256
from clipbench.models.open_clip import OpenClipEncoder
from clipbench.models.zoo import resolve
from clipbench.options import Options
from clipbench.report.document import Heading, Paragraph, Table, to_markdown
from clipbench.session import Session, resources_of
from clipbench.storage import dump_json, run_to_json, write_atomically

DEFAULT_MODELS = (("lite", None), ("ViT-B/32", "random:0"))
EXPERIMENTS = ("natural", "coco_retrieval")
"""Both directions and both towers, on packaged pictures; coco_crops adds 80 class texts per run and no more evidence."""

HEADER = ("fault", "what", "first stage that moved", "cosine to base, min", "verdict", "exit code", "why")
WHY_LETTERS = 140
NOISE = 0.01
PROMPT = "a photo of {caption}"
PREFIX = "a photo of "
MLP_LAYERS = re.compile(r"(^|\.)mlp\.|(^|\.)intermediate\.dense$|(?<!attention)\.output\.dense$")


@dataclass(frozen=True)
class Fault:
    """One way in which a model gets worse in real life. `stage`: the first stage of the trace that it changes.

    `degrade` changes a freshly loaded encoder in place and returns "", or why the fault does not apply to it. A declared fault
    says so in the run (`precision` to load with, `prompt` of the natural images, preprocessing); an undeclared one happens behind
    the encoder's back, and only what the model does can give it away.
    """

    name: str
    stage: str
    what: str
    degrade: Callable[[OpenClipEncoder, int], str] = lambda encoder, seed: ""
    precision: str = "fp32"
    prompt: str = ""


def int8_mlps(encoder, seed):
    """Weights rounded to int8 by output channel, inputs by token: dynamic quantisation, computed in float32.

    Done by rounding, since torch's own dynamic quantisation is deprecated and depends on the processor.
    """
    found = [m for name, m in encoder.model.named_modules() if isinstance(m, nn.Linear) and MLP_LAYERS.search(name)]
    if not found:
        return "no linear layer of an MLP"
    with new_weights(encoder):
        for module in found:
            module.weight.copy_(int8(module.weight))
            module.register_forward_pre_hook(lambda _module, inputs: (int8(inputs[0]),))
    return ""


def int8(values):
    """Each row rounded to 255 levels, symmetric, its largest value kept."""
    step = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / 127
    return (values / step).round() * step


def noise(encoder, seed):
    """Gaussian noise of 1 % of each tensor's own standard deviation; tensors of one element have none."""
    generator = torch.Generator().manual_seed(seed)
    with new_weights(encoder):
        for _, tensor in sorted(encoder.model.named_parameters()):
            if tensor.numel() > 1:
                drawn = torch.randn(tensor.shape, generator=generator)
                tensor.add_((NOISE * tensor.std() * drawn.to(tensor.device)).to(tensor.dtype))
    return ""


@contextmanager
def new_weights(encoder):
    """Weights change here: another checkpoint, which hashes differently and came from no file."""
    with torch.no_grad():
        yield
    sha256 = weights_sha256(encoder.model.state_dict())
    encoder.identity = replace(encoder.identity, weights_sha256=sha256, file_sha256="")


def other_activation(encoder, seed):
    """GELU in place of QuickGELU or the reverse: what open_clip issue 1109 does to OpenAI's weights."""
    if not encoder.identity.activation:
        return "the architecture has one activation"
    found, wanted = (QuickGELU, nn.GELU) if encoder.identity.activation == "quickgelu" else (nn.GELU, QuickGELU)
    for parent, name in [(m, n) for m in encoder.model.modules() for n, c in m.named_children() if type(c) is found]:
        setattr(parent, name, wanted())
    return ""


def bilinear(encoder, seed):
    why = bilinear_undeclared(encoder, seed)
    encoder.preprocessing = encoder.preprocessing.replace("bicubic", "bilinear")
    return why


def bilinear_undeclared(encoder, seed):
    configuration = PreprocessCfg(**encoder.model.visual.preprocess_cfg)
    if configuration.interpolation != "bicubic":
        return f"the resize is {configuration.interpolation} already"
    encoder.preprocess = image_transform_v2(replace(configuration, interpolation="bilinear"), is_train=False)
    return ""


def swapped_channels(encoder, seed):
    original = encoder.preprocess
    encoder.preprocess = lambda image: original(Image.merge("RGB", image.split()[::-1]))
    return ""


class Prefixed:
    """A tokenizer with words of its own before every text."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __call__(self, texts):
        return self._tokenizer([PREFIX + text for text in texts])

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


def forgotten_prefix(encoder, seed):
    encoder.tokenizer = Prefixed(encoder.tokenizer)
    return ""


RESIZED, TENSOR = "bilinear in place of bicubic resize", "preprocessed_tensor"
FAULTS = (
    Fault("bf16", "precision", "bfloat16 in place of float32", precision="bf16"),
    Fault("int8_mlps", "weights", "int8 weights and activations in the MLPs' linear layers", int8_mlps),
    Fault("other_activation", "activation", "GELU in place of QuickGELU, or the reverse", other_activation),
    Fault("bilinear", TENSOR, f"{RESIZED}, declared", bilinear),
    Fault("bilinear_undeclared", TENSOR, f"{RESIZED}, undeclared", bilinear_undeclared),
    Fault("swapped_channels", TENSOR, "BGR in place of RGB, undeclared", swapped_channels),
    Fault("noise", "weights", "1 % noise on every weight", noise),
    Fault("another_prompt", "texts", f"the natural images' prompt is {PROMPT!r}, declared", prompt=PROMPT),
    Fault("forgotten_prefix", "tokens", f"{PREFIX!r} before every text, undeclared", forgotten_prefix),
)


def fault(name):
    """Return the fault of that name. Raises: UsageError with the closest names."""
    known = {f.name: f for f in FAULTS}
    if name not in known:
        raise UsageError(f"unknown fault {name!r}; closest: {closest(name, known) or ', '.join(known)}")
    return known[name]


def degraded_run(spec, chosen, experiments=EXPERIMENTS, seed=0):
    """Return (the run of a model with a fault, ""), or (None, why the fault does not apply to it). No fault: the base.

    Raises: UsageError for an encoder that is not ours: its inside cannot be reached.
    """
    options = Options(device="cpu", precision=chosen.precision if chosen else "fp32", offline=True)
    session = Session(options, resources_of(options))
    encoder = load_encoder(spec, session.resources, options.offline)
    if not isinstance(encoder, OpenClipEncoder):
        raise UsageError(f"{spec.label}: faults are done to models that open_clip makes, not to an encoder of your own")
    why = chosen.degrade(encoder, seed) if chosen else ""
    if why:
        return None, why
    embedder = session.adopt(spec, encoder)
    for one in map(experiment, experiments):
        dataset = session.dataset(one, one.sources(options.data)[0].name)
        if chosen and chosen.prompt and one.traced:
            dataset = replace(dataset, prompts=(chosen.prompt,))
        measured = one.measure(embedder, dataset)
        session.record(spec, one, dataset, measured)
        if one.traced:
            session.traces[spec.name] = trace_of(encoder, dataset, measured.images, measured.texts)
    for key in session.results:
        session.verdicts(key)
    session.free()
    return session.run(), ""


def fault_row(chosen, base, head, why=""):
    """Return the table's row of a fault: what the gate says of `head`, held to `base`; None: why it does not apply."""
    if head is None:
        return chosen.name, chosen.what, "-", "-", "does not apply", "-", why
    rules = read_rules()
    comparison, stages = compare_runs(base, head, rules), list(compare_traces(base.traces, head.traces, rules))
    first = next(iter(first_moved(stages).values()), None)
    moved = f"{STAGES[first.stage]} ({first.details})" if first else "none"
    cosine = min(f.numbers["cosine_min"] for f in stages if "cosine_min" in f.numbers)
    verdict = {"pass": "pass", "fail": "fail", "inconclusive": "cannot tell"}[comparison.outcome]
    deciding = comparison.of(comparison.outcome)
    why = f"{deciding[0].key.experiment}: {deciding[0].reason}" if deciding else "nothing was judged"
    why = why if len(why) <= WHY_LETTERS else f"{why[:WHY_LETTERS].rsplit(' ', 1)[0]} ..."
    return chosen.name, chosen.what, moved, f"{cosine:.5f}", verdict, str(comparison.exit_code), why


def fault_table(spec, faults, experiments=EXPERIMENTS, results=None):
    """Return a model's heading and its table; with `results`, every run is kept there."""

    def run_of(chosen):
        run, why = degraded_run(spec, chosen, experiments)
        if run is not None and results is not None:
            file = f"{spec.name.replace('/', '-')}-{chosen.name if chosen else 'base'}.json"
            write_atomically(results / file, dump_json({"clipbench": run_to_json(run)}))
        return run, why

    base, _ = run_of(None)
    return [Heading(spec.label, 3), Table(HEADER, [fault_row(f, base, *run_of(f)) for f in faults])]


def document(options):
    """Return the tables of the models asked for as Markdown; kept in `results`, too."""
    if options.pretrained and not options.model:
        raise UsageError("--pretrained needs --model: which model has these weights?")
    faults, experiments = [fault(name) for name in options.fault] or FAULTS, options.experiment or EXPERIMENTS
    for name in experiments:
        experiment(name)
    wanted = [(options.model, options.pretrained)] if options.model else DEFAULT_MODELS
    specs = [resolve([name], weights)[0] for name, weights in wanted]
    says = "Every row is a run measured with one fault and compared with the run without it, by the rules of clipbench compare."
    blocks = [Paragraph(says)]
    for spec in specs:
        blocks += fault_table(spec, faults, experiments, options.results)
    text = to_markdown(blocks)
    if options.results:
        write_atomically(options.results / "faults.md", text)
    return text


def main(arguments=None):
    """Print the table and return 0; 2 for usage or what cannot be measured (one line on standard error)."""
    parser = argparse.ArgumentParser(prog="python tests/faults.py", description="What the gate says of degraded runs.")
    add = parser.add_argument
    add("--model", help="one model (default: lite, and ViT-B/32 with random weights)")
    add("--pretrained", help="weights of --model, as in `pytest benchmarks`")
    add("--fault", action="append", default=[], metavar="NAME", help="only this fault; may be given again")
    add("--experiment", action="append", metavar="NAME", help="only this experiment; may be given again")
    add("--results", type=Path, metavar="DIR", help="keep the runs and faults.md here")
    try:
        sys.stdout.write(document(parser.parse_args(arguments)))
    except (ClipbenchError, OSError) as error:
        sys.stderr.write(f"faults: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
