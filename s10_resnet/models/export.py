"""A trained network as a file that other programs run."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from s10_resnet.data import dataset as data
from s10_resnet.data import synthetic
from s10_resnet.errors import InputError, TrainingError
from s10_resnet.models import safetensors_file as sharing
from s10_resnet.models.pretrained import Trained, load_model
from s10_resnet.options import Export
from s10_resnet.utils import console as terminal
from s10_resnet.utils import extras, signals
from s10_resnet.utils.io import write_whole

BATCHES = (1, 7, 256)  # sizes to check a file with: that of the batch is free
TOLERANCE = 1e-3  # of the largest logit; rounding in another order comes to 1e-6 of it

Network = Callable[[Tensor], Tensor]  # uint8 [B, 32, 32, 3] -> float32 [B, C]


class Format(NamedTuple):
    """How a kind of file is written and run.

    Attributes:
        suffix: What its name ends in.
        packages: What it takes, beyond a plain installation.
        write: Writes a network to a path.
        open: The network in such a file.
    """

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[Path, Trained], None]
    open: Callable[[Path], Network]


@signals.heeded()
def export(options: Export) -> Path:
    """Writes a checkpoint's network in another format, reads the file back and checks that it computes the same.

    Returns:
        The file.

    Raises:
        InputError: For a file that is no weights, an output that cannot be, or a package that is not installed.
        TrainingError: If the file's logits are not the network's.
    """
    made = FORMATS[options.format]
    for package in made.packages:
        extras.need(package, "export", f"--format {options.format}")
    trained = load_model(options.checkpoint, device="cpu")
    output = _output(options, made.suffix)
    images, what = _images(options.data_dir)
    with _quiet():
        made.write(output, trained)
        difference = _compare(output, trained.network, made.open(output), images)
    _say(output, trained, f"{difference:.7f} over {len(images)} {what}")
    return output


def _output(options: Export, suffix: str) -> Path:
    output = options.output or options.checkpoint.with_suffix(suffix)
    allowed = ""
    try:
        if output.suffix != suffix:  # other programs go by it, and so does `load_model`
            allowed = f"a name that ends in {suffix}"
        elif not output.parent.is_dir():
            allowed = "in a folder that exists"
        elif output.is_dir():
            allowed = "a file, not a folder"
        elif output.exists() and output.samefile(options.checkpoint):
            allowed = "another file than the checkpoint"
    except OSError as error:
        allowed = f"a file that can be written ({error.strerror})"
    if allowed:
        raise InputError(f"--output {output}: must be {allowed}")
    return output


def _images(data_dir: Path) -> tuple[Tensor, str]:
    """Images to check a file with, and what to call them; nothing is downloaded or unpacked for them."""
    count = sum(BATCHES)
    if (data_dir / "cifar-10-batches-py").is_dir():
        return torch.from_numpy(data.load_cifar10(data_dir)[1].images[:count]), "CIFAR-10 test images"
    return torch.from_numpy(synthetic.draw(count, seed=2)[0]), "synthetic images"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporters' talk of their own progress and future from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(before)


def _program(trained: Trained) -> ExportedProgram:
    example = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)  # of 1 image, torch would take the size for a constant
    program = torch.export.export(trained.network, (example,), dynamic_shapes=({0: Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names folders of this machine, which are nobody's business
    return program


def _write_onnx(path: Path, trained: Trained) -> None:
    model = torch.onnx.export(
        _program(trained), dynamo=True, input_names=["images"], output_names=["logits"]
    ).model_proto
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:  # the one that is free, under a made-up name
                size.dim_param = "batch"
    for key, value in _about(trained).items():
        model.metadata_props.add(key=key, value=value)
    write_whole(path, model.SerializeToString())


def _open_onnx(path: Path) -> Network:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # fatal
    # Left to itself it pins a thread to each core of the machine, and complains of those that are not its own.
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _write_program(path: Path, trained: Trained) -> None:
    buffer = io.BytesIO()
    torch.export.save(_program(trained), buffer, extra_files=_about(trained))
    write_whole(path, buffer.getvalue())


def _open_program(path: Path) -> Network:
    return torch.export.load(path).module()


def _write_safetensors(path: Path, trained: Trained) -> None:
    about = {name: getattr(trained, name) for name in ("epoch", "dataset", "config")}
    about |= {f"{trained.split}_accuracy": trained.accuracy, "classes": list(trained.classes)}
    sharing.write(path, {"model": trained.network.state_dict(), **about})


def _open_safetensors(path: Path) -> Network:
    return load_model(path, device="cpu").network


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _open_onnx),
    "torch": Format(".pt2", (), _write_program, _open_program),
    "safetensors": Format(".safetensors", ("safetensors.torch",), _write_safetensors, _open_safetensors),
}


def _about(trained: Trained) -> dict[str, str]:
    return {"classes": json.dumps(trained.classes), "dataset": trained.dataset}


@torch.inference_mode()
def _compare(path: Path, network: Network, exported: Network, images: Tensor) -> float:
    """The largest difference of two networks' logits.

    Args:
        path: Where the exported one is.
        network: The one that it was made of.
        exported: What the file computes.
        images: uint8 ``[N, 32, 32, 3]``; they come in batches of the sizes `BATCHES`, N being their sum.

    Raises:
        TrainingError: If it is more than rounding, or another class wins by more than that.
    """
    batches = images.split(BATCHES)
    expected, found = (torch.cat([compute(batch) for batch in batches]) for compute in (network, exported))
    difference = (found - expected).abs().max().item()
    allowed = TOLERANCE * expected.abs().max().item()
    if not difference <= allowed:  # neither is no number
        raise TrainingError(
            f"{path}: is not to be used, delete it: its logits are off by up to {difference:.3g}, where rounding "
            f"explains {allowed:.3g}"
        )
    chosen = expected.gather(1, found.argmax(1, keepdim=True)).squeeze(1)
    lead = (expected.amax(1) - chosen).max().item()  # of the network's class over the file's
    if lead > allowed:
        raise TrainingError(
            f"{path}: is not to be used, delete it: it changes a class that leads by {lead:.3g}, where rounding "
            f"explains {allowed:.3g}"
        )
    return difference


def _say(path: Path, trained: Trained, difference: str) -> None:
    terminal.say(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    terminal.say("in: images, uint8 [B, 32, 32, 3], RGB pixels from 0 to 255; normalising them is part of it")
    names = ", ".join(trained.classes[:3]) + (", ..." if len(trained.classes) > 3 else "")
    terminal.say(f"out: logits, float32 [B, {len(trained.classes)}], of {names}; softmax makes them probabilities")
    terminal.say(f"largest logit difference {difference}")
