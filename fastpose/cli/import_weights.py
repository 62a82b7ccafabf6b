"""`fastpose import-weights`: another project's checkpoint as weights of one of our networks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpose import __version__
from fastpose.errors import BackendError, OutputError, WeightsError

if TYPE_CHECKING:
    from torch import nn


SUFFIX = ".safetensors"
LAYOUTS = """FILE of                         NAME
  pytorch-cpn                     cpn50, cpn101, also with -384
  pytorch-pose, the hourglass     hourglass2, hourglass8
  mmpose CPM                      cpm-bn
  CPM release, in Caffe           cpm-flic, cpm-lsp, cpm-vgg (on VGG-19), cpm-person (persons)
  CPM with Caffe's names          the first two of these
  StructuredFeature, in Caffe     structured-lsp
trunks alone, with --partial:
  torchvision, OpenMMLab ResNet   cpn50, cpn101, also with -384 or -tf
  torchvision, Caffe VGG-16       structured-lsp, structured-flic
  torchvision, Caffe VGG-19       cpm-vgg, cpm-person
Weights in Caffe are a .caffemodel, or its blobs in an .npz as LAYER/0, LAYER/1 and so on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = LAYOUTS
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="of torch.save, safetensors or Caffe; nothing in it is run",
    )
    parser.add_argument(
        "--to", required=True, metavar="NAME", help="a name that `fastpose models` lists"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR|FILE",
        help=f"folder for NAME{SUFFIX}, or a file that ends so; its card, .json, lies beside it",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="take what fits and leave the rest random, as for a trunk; else nothing may be "
        "missing, unexpected or of another shape",
    )
    parser.add_argument(
        "--half",
        action="store_true",
        help="round to half precision, for half the size (default: single, which changes nothing)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace weights that are there already"
    )


def run(args: argparse.Namespace) -> int:
    """Read, match and write; say what did not match."""
    from fastpose.models import model_spec

    spec = model_spec(args.to)
    _need_torch()
    from fastpose.engines.build import random_network
    from fastpose.engines.manifest import file_hash
    from fastpose.models import foreign

    out = args.out if args.out.suffix == SUFFIX else args.out / f"{spec.name}{SUFFIX}"
    _check_free(out, args.overwrite)
    state = foreign.read_checkpoint(args.file)
    layout = foreign.recognise(state, args.file, spec.name)
    network = random_network(spec.name)
    fitted = foreign.refit(state, layout, spec)
    report = foreign.fill(network, fitted, layout, args.file)
    source = {"file": args.file.name, "sha256": file_hash(args.file), **report.to_dict()}
    if report.taken == 0 or not (report.complete or args.partial):
        if args.json:
            print(json.dumps({"model": spec.name, "weights": None, "source": source}))
        fits = foreign.models_that_fit(state, layout)
        advice = "--partial takes what fits" if report.taken else "nothing in it fits"
        advice = f"it fits {', '.join(fits)}" if fits else advice
        raise WeightsError(f"{args.file}: {layout.name} against {spec.name}: {report}; {advice}")
    card = {
        "name": spec.name,
        "spec": spec.to_dict(),
        "terms": layout.terms,
        "note": layout.note,
        "source": source,
        "random": len(report.missing) + len(report.wrong_shape),
        "version": __version__,
    }
    _write(network, out, card, half=args.half)
    if args.json:
        print(json.dumps({"model": spec.name, "weights": str(out), **card}))
    else:
        print(f"{out}: {spec.name} from {layout.name}: {report}")
        print(f"terms: {layout.terms}")
        if layout.note:
            print(f"note: {layout.note}")
    return 0


def _need_torch() -> None:
    try:
        import torch  # noqa: F401 (to be told before anything is read)
    except ImportError:
        raise BackendError(
            "import-weights needs torch; install the extra: fastpose-inference[torch]"
        ) from None


def _check_free(out: Path, overwrite: bool) -> None:
    """Nothing is replaced without being asked: it may be the end of days of training."""
    for path in (out, out.with_suffix(".json")):
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: is there already; --overwrite replaces it")


def _write(network: nn.Module, out: Path, card: dict[str, Any], *, half: bool) -> None:
    """Weights and card, each whole or not at all; the card, which makes them usable, last."""
    from fastpose.engines.manifest import file_hash, replaced
    from fastpose.models.weights import save_weights
    from fastpose.sinks.files import make_folder

    make_folder(out.parent)
    with replaced(out.with_suffix(".json")) as card_part, replaced(out) as weights_part:
        save_weights(network.state_dict(), weights_part, half=half)
        card["weights_sha256"] = file_hash(weights_part)
        card_part.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
