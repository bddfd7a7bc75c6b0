"""The train door: `python -m train sample|audit|defects|adapt|fit|export|evaluate|ablate|pretrain`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.defects import MAKERS
from engines import console
from engines.atomic import write_file
from engines.bundle import PRECISIONS, Precision, load_bundle
from engines.extractors import backends
from engines.preprocess import Roi
from train import TrainError
from train.data import LAYOUTS, open_dataset
from train.schedule import PRESETS

if TYPE_CHECKING:
    from train.adaptation import Request
    from train.product import Console, Settings
    from train.select import Scoring

MADE: tuple[Precision, ...] = ("fp16", "int8", "int8-cpu")  # precisions beside fp32
BACKBONES = ("resnet18", "vgg11_bn", "wide_resnet50_2", "wide_resnet101_2")  # known before torch is imported


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 done, 1 the audit found something, 2 bad usage or input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="train", description="From photos of good parts to a bundle for the station.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_sample(commands)
    _add_audit(commands)
    _add_defects(commands)
    _add_adapt(commands)
    _add_fit(commands)
    _add_export(commands)
    _add_evaluate(commands)
    _add_pretrain(commands)
    _add_ablate(commands)
    arguments = parser.parse_args(argv)
    words = sys.argv[1:] if argv is None else list(argv)
    arguments.command = shlex.join(["train", *words])
    return console.run_door(_run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.run is not _adapt and os.environ.get("WORLD_SIZE", "1") != "1":
        raise TrainError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: torchrun is for `train adapt` alone; start this without it"
        )
    return int(arguments.run(arguments))


def parse_size(text: str) -> tuple[int, int]:
    """argparse type: `256`, or `WIDTHxHEIGHT` as cameras write it, to (height, width)."""
    found = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"'{text}', expected a side such as 256, or WIDTHxHEIGHT such as 512x320")
    wide = int(found[1])
    return int(found[2] or wide), wide


def parse_counts(text: str) -> tuple[int, ...]:
    """argparse type: `1,2,5`."""
    if re.fullmatch(r"\d+(,\d+)*", text, re.ASCII) is None:
        raise argparse.ArgumentTypeError(f"'{text}', expected numbers of images such as 1,2,5,10,20,50")
    return tuple(int(piece) for piece in text.split(","))


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """argparse type: `fp16,int8`."""
    pieces = text.split(",")
    chosen = tuple(precision for precision in MADE if precision in pieces)
    if len(chosen) < len(pieces):
        raise argparse.ArgumentTypeError(f"'{text}', expected some of {','.join(MADE)}, each once")
    return chosen


def parse_roi(text: str) -> Roi:
    """argparse type: `X,Y,W,H` in source pixels."""
    pieces = text.split(",")
    if len(pieces) != 4 or not all(piece.strip().isdecimal() for piece in pieces):
        raise argparse.ArgumentTypeError(f"'{text}', expected X,Y,WIDTH,HEIGHT in pixels, such as 100,50,640,480")
    return Roi(*(int(piece) for piece in pieces))


def _add_sample(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sample = commands.add_parser("sample", help="draw a small product to try everything on")
    sample.add_argument("--out", required=True, type=Path, help="folder to make")
    _add_seed(sample)
    sample.set_defaults(run=_sample)


def _add_audit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    audit = commands.add_parser("audit", help="find copies, blur, bad exposure and outliers among the good images")
    _add_data(audit)
    _add_network(audit)
    _add_random(audit)
    _add_coreset(audit)
    audit.add_argument("--out", default=Path("audit.png"), type=Path, help="contact sheet (default: %(default)s)")
    audit.set_defaults(run=_audit)


def _add_fit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    fit = commands.add_parser("fit", help="make a bundle from good images")
    _add_data(fit)
    fit.add_argument("--out", required=True, type=Path, metavar="BUNDLE", help="folder to write; an older bundle is replaced")
    _add_network(fit)
    _add_random(fit)
    size = fit.add_mutually_exclusive_group()
    _add_coreset(size)
    size.add_argument(
        "--budget-ms", type=console.positive_float, metavar="MS", help="as many rows as are searched in that time an image"
    )
    fit.add_argument(
        "--timed-on", type=Path, metavar="FILE", help="what `engines bench --json` wrote on the station (default: timed here)"
    )
    fit.add_argument("--adapt", choices=tuple(PRESETS), help="adapt the backbone to the product first (default: not)")
    _add_adapting(fit)
    fit.add_argument("--recipe", help="name of the product (default: the data folder's name)")
    fit.add_argument("--mm-per-pixel", type=console.positive_float, help="of the source images, to speak in millimetres")
    fit.add_argument("--k", type=int, help="take the published density over K neighbours instead of the measured one")
    fit.add_argument("--alpha", type=float, help="weight of the density, 0 is plain NN (default: chosen on the good images)")
    fit.add_argument("--metric", default="sqeuclidean", choices=("sqeuclidean", "euclidean"), help="default: %(default)s")
    fit.add_argument(
        "--precisions", default=(), type=parse_precisions, metavar="P,P", help=f"offer too, of {','.join(MADE)} (default: none)"
    )
    fit.set_defaults(run=_fit)


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = commands.add_parser("export", help="offer a bundle's network in further precisions")
    export.add_argument("--bundle", required=True, type=Path, help="folder that `train fit` wrote")
    _add_data(export)
    export.add_argument("--out", required=True, type=Path, metavar="BUNDLE", help="folder to write; may be the same bundle")
    export.add_argument("--precisions", default=MADE, type=parse_precisions, metavar="P,P", help=f"default: {','.join(MADE)}")
    export.set_defaults(run=_export)


def _add_defects(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    defects = commands.add_parser("defects", help="draw a contact sheet of synthetic defects, to judge whether they look real")
    _add_data(defects)
    _add_input(defects)
    _add_seed(defects)
    _add_maker(defects)
    defects.add_argument("--rows", default=6, type=console.positive_int, help="good images to show (default: %(default)s)")
    defects.add_argument("--out", default=Path("defects.png"), type=Path, help="default: %(default)s")
    defects.set_defaults(run=_defects)


def _add_adapt(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    adapt = commands.add_parser("adapt", help="adapt a backbone to a product; several GPUs: torchrun -m train adapt ...")
    _add_data(adapt)
    _add_network(adapt)
    _add_random(adapt)
    adapt.add_argument("--out", required=True, type=Path, metavar="FILE", help=".safetensors file for fit --weights")
    _add_preset(adapt)
    _add_adapting(adapt)
    adapt.set_defaults(run=_adapt)


def _add_preset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="quick", choices=tuple(PRESETS), help="length of training (default: %(default)s)")


def _add_adapting(parser: argparse.ArgumentParser) -> None:
    _add_maker(parser)
    _add_computing(parser)
    parser.add_argument("--resume", action="store_true", help="go on with an adaptation that was interrupted")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="write TensorBoard logs of the adaptation")


def _add_maker(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--maker", default="defectmaker", choices=tuple(MAKERS), help="of synthetic defects (default: %(default)s)"
    )
    _add_saliency(parser)


def _add_saliency(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--saliency", type=Path, metavar="DIR", help="masks NAME.png that show the part (default: estimated)")


def _add_computing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=console.count, help="processes that draw defects (default: for the device)")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32"), help="default: %(default)s")


def _add_pretrain(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    pretrain = commands.add_parser(
        "pretrain", help="train a backbone from nothing on drawn images: how the shipped one was made"
    )
    pretrain.add_argument("--out", required=True, type=Path, metavar="FILE", help=".safetensors file for fit --weights")
    pretrain.add_argument("--backbone", default="resnet18", choices=BACKBONES, help="default: %(default)s")
    pretrain.add_argument("--steps", default=700, type=console.positive_int, help="default: %(default)s")
    pretrain.add_argument("--batch", default=32, type=console.positive_int, help="scenes a step (default: %(default)s)")
    pretrain.add_argument("--size", default=96, type=console.positive_int, help="pixels a side (default: %(default)s)")
    pretrain.add_argument("--rate", default=2e-3, type=console.positive_float, help="learning rate (default: %(default)s)")
    _add_seed(pretrain)
    pretrain.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    pretrain.add_argument("--workers", default=1, type=console.count, help="processes that draw (default: %(default)s)")
    pretrain.add_argument(
        "--save-every", default=200, type=console.positive_int, help="steps between checkpoints (default: %(default)s)"
    )
    pretrain.add_argument("--resume", action="store_true", help="go on with a run that was interrupted")
    pretrain.set_defaults(run=_pretrain)


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = commands.add_parser("evaluate", help="measure a bundle on labelled test images, beside the baselines")
    evaluate.add_argument("--bundle", required=True, type=Path)
    _add_data(evaluate)
    evaluate.add_argument("--backend", default="onnxruntime", choices=backends(), help="default: %(default)s")
    evaluate.add_argument("--precision", default="fp32", choices=PRECISIONS, help="default: %(default)s")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write {method: {metric: {kind or 'all': value}}}")
    evaluate.add_argument("--report", type=Path, metavar="DIR", help="write an HTML page with plots and the worst misses")
    evaluate.set_defaults(run=_evaluate)


def _add_ablate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ablate = commands.add_parser("ablate", help="measure what adaptation and LDKNN each bring; run it again to go on")
    _add_data(ablate)
    ablate.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for results; what it holds is not done again"
    )
    _add_preset(ablate)
    ablate.add_argument("--seeds", default=3, type=console.positive_int, help="how many, from 0 (default: %(default)s)")
    ablate.add_argument(
        "--few-shot", dest="counts", type=parse_counts, metavar="N,N,...", help="measure over numbers of good images instead"
    )
    _add_network(ablate)
    _add_coreset(ablate)
    ablate.add_argument("--k", default=9, type=int, help="neighbours of the density (default: %(default)s)")
    _add_saliency(ablate)
    _add_computing(ablate)
    ablate.set_defaults(run=_ablate)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, type=Path, help="folder of images")
    parser.add_argument("--layout", choices=LAYOUTS, help="default: detected")


def _add_network(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", metavar="FILE|URL|drawn|none", help="default: REB_WEIGHTS, else ImageNet, downloaded once, else drawn"
    )
    parser.add_argument("--backbone", default="resnet18", choices=BACKBONES, help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    _add_input(parser)


def _add_input(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", default=(256, 256), type=parse_size, metavar="SIDE|WxH", help="network input (default: 256)")
    parser.add_argument("--roi", type=parse_roi, metavar="X,Y,W,H", help="judged rectangle in source pixels (default: all)")
    parser.add_argument("--mask", type=Path, metavar="FILE", help="image of the frame's size; what is not black is ignored")


def _add_random(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--few-shot", type=int, metavar="N", help="train on N images drawn at random")
    _add_seed(parser)


def _add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", default=0, type=console.count, help="default: %(default)s")


def _add_coreset(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--coreset", default=0.02, type=float, help="part of the patches to keep, or from 100 how many (default: %(default)s)"
    )


def _sample(arguments: argparse.Namespace) -> int:
    from train.sample import write_sample

    with console.progress("drawing") as advance:
        write_sample(arguments.out, seed=arguments.seed, progress=advance)
    console.say(f"wrote {open_dataset(arguments.out).summary()}")
    console.say(f"wrote {arguments.out / 'calibration' / 'good'}: good parts for a station's calibration")
    return console.DONE


def _audit(arguments: argparse.Namespace) -> int:
    _need_extra()
    from train.contact_sheet import contact_sheet
    from train.normals import audit

    findings, count = audit(_settings(arguments), _talk())
    contact_sheet(findings, arguments.out)
    if not findings:
        console.say(f"nothing suspicious in {count} images; wrote {arguments.out}")
        return console.DONE
    rows = [(finding.problem, finding.sample.path.name, finding.detail) for finding in findings]
    console.table(f"{len(findings)} findings in {count} images", ("problem", "image", "what"), rows)
    console.say(f"wrote {arguments.out}")
    return console.NO


def _pretrain(arguments: argparse.Namespace) -> int:
    _need_extra()
    from train.pretrain import PretrainSettings, pretrain

    names = [field.name for field in dataclasses.fields(PretrainSettings) if hasattr(arguments, field.name)]
    pretrain(PretrainSettings(**{name: getattr(arguments, name) for name in names}), arguments.out, _talk())
    console.say(f"wrote {arguments.out}")
    return console.DONE


def _defects(arguments: argparse.Namespace) -> int:
    _need_extra()
    from train.adaptation import draw_defects

    draw_defects(_settings(arguments), arguments.maker, arguments.saliency, arguments.out, arguments.rows, _talk())
    console.say(f"wrote {arguments.out}")
    return console.DONE


def _adapt(arguments: argparse.Namespace) -> int:
    _need_extra()
    from train.adaptation import adapt_to_file
    from train.processes import torchrun

    with torchrun(arguments.device) as device:
        settings = dataclasses.replace(_settings(arguments), device=device)
        adapt_to_file(settings, _request(arguments, arguments.preset), arguments.out, _talk())
    return console.DONE


def _fit(arguments: argparse.Namespace) -> int:
    _need_extra()
    from train.fit import fit

    request = None
    if arguments.adapt is None:
        _refuse_adapting(arguments)
    else:
        request = _request(arguments, arguments.adapt)
    result = fit(_settings(arguments), arguments.out, _talk(), request, arguments.saliency)
    _say_choice(result.scoring)
    threshold = result.threshold
    if threshold is not None:
        console.say(
            f"provisional threshold {threshold.value:.6g} from {threshold.n} held-out normals"
            f" (false rejects {threshold.rate:.0%} or less); calibrate each station before use"
        )
    golden = result.golden
    console.say(
        f"export: {len(golden.rows)} golden images, {golden.flips} decision flips, scores differ by"
        f" {golden.max_difference:.1e} of the spread of normal scores at most"
    )
    console.say(f"wrote {result.path} ({result.rows} rows, digest {result.digest[:12]})")
    if arguments.precisions:
        arguments.bundle = arguments.out
        return _export(arguments)
    console.say("the network is in fp32 alone; `train export` adds fp16 and int8, for faster stations")
    return console.DONE


def _export(arguments: argparse.Namespace) -> int:
    _need_extra()
    from train.variants import export

    result = export(arguments.bundle, arguments.data, arguments.out, arguments.precisions, _talk(), arguments.layout)
    console.table(
        "precisions, held against fp32",
        ("precision", "images", "difference", "flips", ""),
        [one.cells() for one in result.variants],
    )
    console.say(f"wrote {result.path} (digest {result.digest[:12]}); a difference is in spreads of normal scores")
    return console.DONE


def _say_choice(scoring: Scoring) -> None:
    """The table that alpha was chosen from, and what other sizes of bank would have brought."""
    choice = scoring.choice
    if choice is None:
        console.say(f"score: {scoring.kind} density, K {scoring.k}, alpha {scoring.alpha:g}")
        return
    console.table(
        f"chosen: alpha {scoring.alpha:g}, on {choice.defects} synthetic defects over {choice.images} good images",
        ("alpha", "AUROC on these, percent", "behind the best", "error of that"),
        [(f"{one.alpha:g}", *(f"{100 * value:.2f}" for value in (one.auroc, one.behind, one.error))) for one in choice.tried],
    )
    console.table(
        "by size of bank, on the same defects; the last is the one taken",
        ("rows", "alpha", "AUROC, percent", "plain NN", "search, ms"),
        [
            (f"{size.rows:,}", f"{size.alpha:g}", f"{100 * size.auroc:.2f}", f"{100 * size.plain:.2f}", f"{size.search_ms:.1f}")
            for size in choice.sizes
        ],
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    _need_extra()
    from train.evaluate import ALL, METRICS, evaluate, to_json
    from train.report import check_report_folder, write_report

    if arguments.report is not None:
        check_report_folder(arguments.report)
    bundle, dataset = load_bundle(arguments.bundle), open_dataset(arguments.data, arguments.layout)
    console.say(f"data: {dataset.summary()}")
    with console.progress("evaluating") as advance:
        evaluation = evaluate(bundle, dataset, backend=arguments.backend, precision=arguments.precision, progress=advance)
    for note in evaluation.notes:
        console.warn(note)
    own = evaluation.metrics["ldknn"]
    columns = [metric for metric in METRICS if metric in own]
    kinds = [(kind, *(_percent(own[metric], kind) for metric in columns)) for kind in evaluation.kinds()]
    console.table("LDKNN by kind of defect, percent", ("kind", *columns), kinds)
    methods = [(name, *(_percent(row.get(metric, {}), ALL) for metric in columns)) for name, row in evaluation.metrics.items()]
    console.table("all defects, percent", ("method", *columns), methods)
    if arguments.json is not None:
        write_file(arguments.json, to_json(evaluation).encode())
        console.say(f"wrote {arguments.json}")
    if arguments.report is not None:
        console.say(f"wrote {write_report(arguments.report, evaluation, bundle, dataset)}")
    return console.DONE


def _ablate(arguments: argparse.Namespace) -> int:
    _need_extra()
    from train.ablate import Study, compare_makers, few_shot_curve
    from train.ablation_table import few_shot_table, makers_table
    from train.adaptation import Request

    request = Request(arguments.preset, saliency=arguments.saliency, precision=arguments.precision, workers=arguments.workers)
    study = Study(_settings(arguments), request, arguments.seeds, arguments.out)
    if arguments.counts is None:
        stem, (columns, rows) = "ablation", makers_table(compare_makers(study, _talk()))
    else:
        stem, (columns, rows) = "few_shot", few_shot_table(few_shot_curve(study, arguments.counts, _talk()))
    console.table(f"image AUROC, percent; seeds: {arguments.seeds}", columns, rows)
    console.say(f"wrote {arguments.out / stem}.json and {stem}.png")
    return console.DONE


def _percent(values: Mapping[str, float], kind: str) -> str:
    return f"{100 * values[kind]:.2f}" if kind in values else "-"


def _settings(arguments: argparse.Namespace) -> Settings:
    from train.product import Settings

    names = [field.name for field in dataclasses.fields(Settings) if hasattr(arguments, field.name)]
    return Settings(**{name: getattr(arguments, name) for name in names})


def _refuse_adapting(arguments: argparse.Namespace) -> None:
    """An option of the adaptation without one would be lost without a word."""
    usual = {"maker": "defectmaker", "workers": None, "precision": "auto", "resume": False, "logs": None}
    given = [f"--{name}" for name, value in usual.items() if getattr(arguments, name) != value]
    if given:
        raise TrainError(f"{', '.join(given)} without --adapt, which alone uses it; add --adapt {'|'.join(PRESETS)}")
    if arguments.saliency is not None and (arguments.k is not None or arguments.alpha is not None):
        raise TrainError("--saliency says where defects are drawn, and with --k or --alpha none are; leave one of them out")


def _request(arguments: argparse.Namespace, preset: str) -> Request:
    from train.adaptation import Request

    out = Path(os.path.abspath(arguments.out))  # of `.` too, which has no name
    return Request(
        preset,
        maker=arguments.maker,
        saliency=arguments.saliency,
        precision=arguments.precision,
        workers=arguments.workers,
        checkpoint=out.parent / f"{out.name}.checkpoint",
        resume=arguments.resume,
        logs=arguments.logs,
    )


def _talk() -> Console:
    from train.product import Console

    return Console(console.say, console.warn, console.progress)


def _need_extra() -> None:
    """Say which extra is missing before an import fails with a bare name."""
    missing = [
        name
        for name in ("torch", "onnx", "onnxscript", "safetensors", "sklearn", "matplotlib", "jinja2", "tensorboard")
        if find_spec(name) is None
    ]
    if missing:
        raise TrainError(f"{', '.join(missing)} cannot be imported; install the training part: pip install '.[train]'")


if __name__ == "__main__":
    sys.exit(main())
