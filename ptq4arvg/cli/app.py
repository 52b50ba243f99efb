"""All commands and their options. What they do is in the files beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["COMMANDS", "app"]

app = typer.Typer(
    name="ptq4arvg",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Quantize autoregressive image models after training and run them in integers.",
)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]
Seed = Annotated[int, typer.Option("--seed", help="Decides every random choice.")]
Weights = Annotated[Path | None, typer.Option(help="File of the transformer's weights.")]
Tokenizer = Annotated[Path | None, typer.Option(help="File of the tokenizer's weights.")]
Stress = Annotated[float, typer.Option(help="Severity of the function-preserving stress.")]
Samples = Annotated[int, typer.Option(help="Calibration rows to sample from the model.")]
Keep = Annotated[int, typer.Option(help="Calibration rows to keep of them.")]
Schemes = Annotated[
    str, typer.Option(help="Comma-separated; 5.5 is a mixture of 5.5 bits a weight (4 to 8).")
]
Select = Annotated[str, typer.Option(help="How rows are chosen: dgc, random or first.")]


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"ptq4arvg {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for grid.png and report.json.")],
    model: Annotated[
        str, typer.Option(help="A bundled model: see `ptq4arvg models`.")
    ] = "var-tiny",
    seed: Seed = 0,
    images: Annotated[int, typer.Option(help="Images to generate with each model.")] = 64,
    stress: Annotated[bool, typer.Option(help="Repeat everything on the stressed model.")] = True,
    schemes: Schemes = "W8A8,W6A6,W4A8",
    quiet: Quiet = False,
) -> None:
    """Quantize a bundled model several ways; compare pictures and figures with the float model."""
    from .demo import run

    run(model, out, seed, images, stress, schemes, quiet)


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this installation runs on: torch, instruction sets, CUDA, kernels, fallbacks."""
    from .doctor import run

    run(json)


@app.command()
def models() -> None:
    """List the models that can be loaded by name."""
    from .listing import run_models

    run_models()


@app.command()
def methods() -> None:
    """List the methods, what they do and their options."""
    from .listing import run_methods

    run_methods()


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="Name of a model; see `ptq4arvg models`.")],
    out: Annotated[Path, typer.Option(help="File for the rows (.safetensors).")],
    samples: Samples = 256,
    keep: Keep = 128,
    select: Select = "dgc",
    seed: Seed = 0,
    weights: Weights = None,
    tokenizer: Tokenizer = None,
    stress: Stress = 0.0,
    quiet: Quiet = False,
) -> None:
    """Sample calibration rows from a model and keep them in a file for several runs of quantize."""
    from .quantize import run_calibrate

    source = (model, weights, tokenizer, stress)
    run_calibrate(source, out, samples, keep, select, seed, quiet)


@app.command()
def quantize(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of a model; see `ptq4arvg models`.")],
    scheme: Annotated[
        str | None, typer.Option(help="W8A8, W6A8, W6A6 or W4A8; default: W6A6.")
    ] = None,
    target_bits: Annotated[
        float | None,
        typer.Option(help="Choose a scheme per linear: mean bits of the weights, 4 to 8."),
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(help="Scheme of the tokenizer's decoder; default: it stays in float."),
    ] = None,
    method: Annotated[str, typer.Option(help="See `ptq4arvg methods`.")] = "ptq4arvg",
    out: Annotated[Path | None, typer.Option(help="Folder for the checkpoint.")] = None,
    weights: Weights = None,
    tokenizer: Tokenizer = None,
    stress: Stress = 0.0,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Linears to keep in float: name, glob or re:...")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option(help="Another scheme for some linears: PATTERN=SCHEME.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the method: NAME=VALUE.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Rows from `ptq4arvg calibrate`.")
    ] = None,
    parts: Annotated[
        Path | None, typer.Option(help="Folder for finished blocks of omniquant, to go on from.")
    ] = None,
    samples: Samples = 256,
    keep: Keep = 128,
    select: Select = "dgc",
    seed: Seed = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Calibrate and quantize a model, and save it as a packed checkpoint."""
    from .quantize import Request, run_quantize

    rows = {"samples": samples, "keep": keep, "select": select, "seed": seed}
    if calibration is not None:
        source = context.get_parameter_source
        rows = {n: value for n, value in rows.items() if source(n).name == "COMMANDLINE"}
    run_quantize(
        Request(
            source=(model, weights, tokenizer, stress), scheme=scheme, target_bits=target_bits,
            decoder=decoder, method=method, out=out,
            ignore=ignore or [], overrides=override or [], options=option or [],
            calibration=calibration, parts=parts,
            rows=rows, dry_run=dry_run, overwrite=overwrite, quiet=quiet,
        )
    )  # fmt: skip


@app.command()
def generate(
    folder: Annotated[str, typer.Argument(help="A checkpoint, or the name of a float model.")],
    classes: Annotated[str, typer.Option(help="Class numbers, as in 3,7 or 0-31.")],
    out: Annotated[Path, typer.Option(help="Folder for the images.")],
    seed: Seed = 0,
    cfg: Annotated[float | None, typer.Option(help="Guidance; default: the model's.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Default: the model's.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Default: the model's.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Where the family has it; default: the model's.")
    ] = None,
    num_iter: Annotated[
        int | None, typer.Option(help="Iterations of MAR; default: the model's.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 16,
    weights: Weights = None,
    tokenizer: Tokenizer = None,
    quiet: Quiet = False,
) -> None:
    """Generate one image per class number. Image i depends on the seed and i only.

    Images of the same model, seed and options that are there already are not drawn again.
    """
    from .generate import run

    options = {
        "cfg": cfg, "top_k": top_k, "top_p": top_p, "temperature": temperature,
        "num_iter": num_iter,
    }  # fmt: skip
    run(
        folder, classes, out, seed, options, batch_size, quiet,
        weights=weights, tokenizer=tokenizer,
    )  # fmt: skip


@app.command()
def compare(
    models: Annotated[list[str], typer.Argument(help="Bundled models, or all.")],
    out: Annotated[Path, typer.Option(help="Folder for cells and tables; resumed if it is there.")],
    methods: Annotated[
        str, typer.Option(help="Names with additions, as in rtn,smoothquant+stwq+gptq; or all.")
    ] = "all",
    schemes: Schemes = "W8A8,W6A6,W4A8",
    stress: Annotated[
        list[float] | None, typer.Option(help="Severities of the stress; default: 0 and 30.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Calibration seeds.")] = 3,
    samples: Samples = 64,
    keep: Keep = 32,
    images: Annotated[int, typer.Option(help="Images drawn with each model.")] = 64,
    select: Select = "dgc",
    jobs: Annotated[int, typer.Option(help="Processes; the models are shared among them.")] = 1,
    quiet: Quiet = False,
) -> None:
    """Measure methods against each other: same rows, schemes and seeds; resumable."""
    from .compare import run

    run(
        models, methods, schemes, out, quiet, jobs, stresses=tuple(stress or (0.0, 30.0)),
        seeds=seeds, samples=samples, keep=keep, images=images, select=select,
    )  # fmt: skip


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder that `ptq4arvg compare` wrote.")],
) -> None:
    """Turn a comparison's folder into one page, report.html, that needs no network."""
    from .report import run

    run(folder)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A checkpoint.")],
    quiet: Quiet = False,
) -> None:
    """Check a checkpoint: its hash, its reloading, and each integer layer against simulation."""
    from .verify import run

    run(folder, quiet)


@app.command()
def evaluate(
    target: Annotated[
        str, typer.Argument(help="A checkpoint, the name of a float model, or samples (.npz).")
    ],
    protocol: Annotated[
        str, typer.Option(help="smoke, or var-paper, rar-paper, par-paper, mar-paper.")
    ] = "smoke",
    out: Annotated[Path, typer.Option(help="File for the result.")] = Path("result.json"),
    images: Annotated[
        int | None, typer.Option(help="Another number of images: another protocol.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="File (.npz) to write the images to, as ADM reads them.")
    ] = None,
    parts: Annotated[
        Path | None, typer.Option(help="Folder for finished batches; default: beside --out.")
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(help="Weights of Inception-v3 of 2015-12-05 (.pth or .pb).")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Reference statistics or images, as ADM's .npz.")
    ] = None,
    weights: Weights = None,
    tokenizer: Tokenizer = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    resamples: Annotated[int, typer.Option(help="Of the bootstrap intervals; 0 for none.")] = 200,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 16,
    seed: Annotated[
        int, typer.Option(help="Decides every random choice; not that of the calibration.")
    ] = 1000,
    quiet: Quiet = False,
) -> None:
    """Measure a model under a named protocol: images against a reference, tokens against float."""
    from .evaluate import Request, run

    run(
        Request(
            target=target, protocol=protocol, out=out, images=images, samples=samples,
            parts=parts, inception=inception, reference=reference, weights=weights,
            tokenizer=tokenizer, device=device, resamples=resamples, batch_size=batch_size,
            seed=seed, quiet=quiet,
        )
    )  # fmt: skip


COMMANDS = tuple(command.callback.__name__ for command in app.registered_commands)
