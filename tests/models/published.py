"""Small models under names of their own, as if they were published."""

from ptq4arvg.models import par, registry
from ptq4arvg.models.family import PublishedFiles
from tests.models.tiny import TINY


def publish(name: str, **sizes) -> None:
    """Make the registry know a small PAR ``name`` with these sizes; for the running process."""
    tiny = TINY["par"]
    par.FAMILY.sizes[name] = ({**tiny["transformer"], **sizes}, tiny["tokenizer"])
    par.FAMILY.files[name] = PublishedFiles("weights.pt", "tokenizer.pt", "nowhere", "MIT")
    registry.PUBLISHED[name] = par.FAMILY


def withdraw(name: str) -> None:
    """Undo ``publish``."""
    del par.FAMILY.sizes[name], par.FAMILY.files[name], registry.PUBLISHED[name]
