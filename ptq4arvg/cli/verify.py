"""`ptq4arvg verify`: is a checkpoint whole, and do its integer layers compute what they should?"""

from __future__ import annotations

from pathlib import Path

from .common import closing, header, typed

__all__ = ["run"]


def run(folder: Path, quiet: bool) -> None:
    """Load (which checks every hash), save again in memory, and compare layers with simulation."""
    header(f"verify {folder}", quiet=quiet)
    import torch

    from ..checkpoint import content_hash, load_quantized, read_config
    from ..checkpoint.save import describe
    from ..fuse import unfuse_
    from ..verify import check_integer_path

    config = read_config(folder)
    model = load_quantized(folder)
    print(f"ok     contents match their hash {config['hash'][:12]}")
    again = content_hash(*describe(model))
    if again != config["hash"]:
        raise RuntimeError(
            f"verify: {folder}: the loaded model hashes to {again[:12]}, the checkpoint to "
            f"{config['hash'][:12]}; please report this"
        )
    print("ok     unpacked and packed again: the same hash")
    labels = torch.tensor([0, model.null_label])
    ids = torch.cat(2 * [model.sample_rows(labels[:1], seed=0)])
    unfuse_(model)  # a layer is compared on float inputs and outputs
    checks = check_integer_path(model, ids, labels)
    failed = [check for check in checks if not check.passed]
    for check in failed:
        print(f"FAILED {check.name} with {check.kernel}: relative error {check.error:.2g}")
    if failed:
        raise RuntimeError(
            f"verify: {len(failed)} of {len(checks)} integer layers differ from their simulation; "
            "please report this with the output of `ptq4arvg doctor`"
        )
    worst = max(checks, key=lambda check: check.error)
    kernels = ", ".join(sorted({check.kernel for check in checks}))
    print(f"ok     {len(checks)} integer layers equal their simulation ({kernels})")
    closing(
        "nothing",
        f"largest difference from simulation {worst.error:.1g} of the output, in {worst.name}",
        typed("generate", folder, classes="0-7", out="images"),
    )
