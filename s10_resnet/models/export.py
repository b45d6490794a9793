"""Export of trained networks to ONNX and safetensors."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from s10_resnet.config import ExportConfig
from s10_resnet.data import dataset, synthetic
from s10_resnet.errors import InputError, TrainingError
from s10_resnet.models.pretrained import LoadedModel, load_model, weights_file
from s10_resnet.utils import signals
from s10_resnet.utils.console import logger
from s10_resnet.utils.environment import require_optional
from s10_resnet.utils.io import atomic_write

BATCH_SIZES = (1, 7, 256)  # to check an exported file with: its batch size is dynamic
TOLERANCE = 1e-3  # relative to the largest logit; another order of summation accounts for 1e-6

Network = Callable[[Tensor], Tensor]  # uint8 [B, 32, 32, 3] to float32 [B, C]


class Format(NamedTuple):
    """A file format, whose name is the suffix of its files."""

    packages: tuple[str, ...]  # the optional packages that it needs
    encode: Callable[[LoadedModel], bytes]
    open: Callable[[Path], Network]


@signals.graceful_shutdown()
def export(config: ExportConfig) -> Path:
    """Exports a checkpoint's network, reads the file back and compares its logits with the network's.

    Returns:
        The path of the file.

    Raises:
        InputError: For a checkpoint that is not a weights file, an output path that cannot be written, or an optional
            package that is not installed.
        TrainingError: If the logits of the exported file differ from the network's.
    """
    file_format = FORMATS[config.format]
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported; it would upload usage data
    for package in file_format.packages:
        require_optional(package, "export", f"--format {config.format}")
    model = load_model(config.checkpoint, device="cpu")
    output = _output_path(config)
    images, description = _load_images(config.data_dir)
    with warnings.catch_warnings(action="ignore"):  # of the exporter
        content = file_format.encode(model)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, output.name)
            path.write_bytes(content)
            difference = _compare(output, model, file_format.open(path), images)
    atomic_write(output, content)
    logger.info(f"{output}: {output.stat().st_size / 1e6:.1f} MB, {config.format}")
    logger.info("input: images, uint8 [B, 32, 32, 3], RGB pixels from 0 to 255, not normalized")
    logger.info(f"output: logits, float32 [B, {len(model.classes)}]; apply softmax for probabilities")
    logger.info(f"largest logit difference {difference:.7f} over {len(images)} {description}")
    return output


def _output_path(config: ExportConfig) -> Path:
    checkpoint, suffix = weights_file(config.checkpoint), f".{config.format}"
    output = config.output or checkpoint.with_suffix(suffix)
    # Other programs, and `load_model`, tell the format by the suffix.
    if output.suffix != suffix or output.is_dir() or not output.parent.is_dir():
        raise InputError(f"--output {output}: must be a name that ends in {suffix}, in a folder that exists")
    if output.exists() and output.samefile(checkpoint):
        raise InputError(f"--output {output}: must be another file than the checkpoint")
    return output


def _load_images(data_dir: Path) -> tuple[Tensor, str]:
    """Returns images to check a file with, and their description; nothing is downloaded or unpacked for them."""
    count = sum(BATCH_SIZES)
    if (data_dir / "cifar-10-batches-py").is_dir():
        return torch.from_numpy(dataset.load_cifar10(data_dir)[1].images[:count]), "CIFAR-10 test images"
    return torch.from_numpy(synthetic.generate(count, seed=2)[0]), "synthetic images"


def _encode_onnx(model: LoadedModel) -> bytes:
    exported = torch.onnx.export(
        model.network,
        (torch.zeros(2, 32, 32, 3, dtype=torch.uint8),),  # a batch size of 1 would be exported as a constant
        dynamic_shapes=({0: "batch"},),
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        verbose=False,
    )
    assert exported is not None
    exported.model.metadata_props.update(classes=json.dumps(model.classes), dataset=model.dataset)
    for node in exported.model.graph:
        node.metadata_props.clear()  # paths of this machine are among them
    proto = exported.model_proto
    logger.info(f"ONNX opset {proto.opset_import[0].version}, IR version {proto.ir_version}")
    return proto.SerializeToString()


def _open_onnx(path: Path) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # By default it pins a thread to each core of the machine, and logs errors for cores that the process may not use.
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _encode_safetensors(model: LoadedModel) -> bytes:
    """The weights are tensors, and everything else is JSON in the header."""
    import safetensors.torch

    names = ("classes", "dataset", "epoch", "eval_accuracy", "eval_split", "config")
    text = {"format": "pt"} | {name: json.dumps(getattr(model, name)) for name in names}
    tensors = {name: tensor.contiguous() for name, tensor in model.network.state_dict().items()}
    return safetensors.torch.save(tensors, text)


FORMATS = {
    "onnx": Format(("onnx", "onnxscript", "onnxruntime"), _encode_onnx, _open_onnx),
    "safetensors": Format(("safetensors.torch",), _encode_safetensors, partial(load_model, device="cpu")),
}


@torch.inference_mode()
def _compare(path: Path, network: Network, exported: Network, images: Tensor) -> float:
    """Returns the largest difference of two networks' logits, and refuses one that rounding does not explain."""
    batches = images.split(list(BATCH_SIZES))
    expected, actual = (torch.cat([compute(batch) for batch in batches]) for compute in (network, exported))
    difference = (actual - expected).abs().max().item()
    allowed = TOLERANCE * expected.abs().max().item()
    if not difference <= allowed:  # neither is NaN
        raise TrainingError(
            f"{path}: was not written, as its logits would differ by up to {difference:.3g}; rounding explains "
            f"{allowed:.3g}"
        )
    return difference
